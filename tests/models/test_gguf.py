"""Ordinary copies of ``.gguf`` models: the same model, made once, whole or not at all."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models import gguf as copies
from dynamic_dpo.models.gguf import unpacked
from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model
from dynamic_dpo.utils.files import cache_folder

HIDDEN, MIDDLE, LAYERS, HEADS, GROUPS, HEAD = 64, 96, 2, 4, 2, 16
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "ab", "Ġ"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def write_gguf(path: Path) -> Path:
    """Write a Llama of two layers with a byte-pair tokenizer of fourteen words."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = random.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(
                name,
                quantize(values, GGMLQuantizationType.Q8_0),
                raw_dtype=GGMLQuantizationType.Q8_0,
            )

    add("token_embd.weight", len(WORDS), HIDDEN)
    add("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        for name, *shape in (
            ("attn_norm", HIDDEN),
            ("ffn_norm", HIDDEN),
            ("attn_q", HEADS * HEAD, HIDDEN),
            ("attn_k", GROUPS * HEAD, HIDDEN),
            ("attn_v", GROUPS * HEAD, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD),
            ("ffn_gate", MIDDLE, HIDDEN),
            ("ffn_up", MIDDLE, HIDDEN),
            ("ffn_down", HIDDEN, MIDDLE),
        ):
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def parts() -> list[str]:
    found = (path.name for path in cache_folder("gguf").glob("*/*"))
    return sorted(name for name in found if not name.startswith("."))


def leftovers() -> list[str]:
    return [path.name for path in cache_folder("gguf").glob("*/.*.tmp")]


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the .gguf file was unpacked again")

    monkeypatch.setattr("gguf.GGUFReader", refuse)


def test_the_second_start_gets_the_same_model_and_tokenizer_from_the_copy(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve_model(str(tiny))
    monkeypatch.setattr(copies, "LARGEST_FILE", 0)
    straight, its_tokenizer = load_model(source), load_tokenizer(source)
    assert parts() == []
    monkeypatch.undo()
    monkeypatch.setenv("DYNAMIC_DPO_CACHE", str(tmp_path / "cache"))
    first = load_model(source)
    load_tokenizer(source)
    assert parts() == ["model", "tokenizer"]
    forbid_reading(monkeypatch)
    second, tokenizer = load_model(source), load_tokenizer(source)

    assert straight.state_dict().keys() == second.state_dict().keys()
    for name, weight in straight.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, second.state_dict()[name])
        assert torch.equal(weight, first.state_dict()[name])
    # Saving notes the class, as it would at the end of a training.
    assert second.config.to_dict() == straight.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    assert second.generation_config.to_dict() == straight.generation_config.to_dict()
    assert second.name_or_path == straight.name_or_path == str(tmp_path)
    assert tokenizer.backend_tokenizer.to_str() == its_tokenizer.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == its_tokenizer.special_tokens_map
    assert tokenizer.name_or_path == its_tokenizer.name_or_path
    talk = [{"role": "user", "content": "abc"}]
    said = its_tokenizer.apply_chat_template(talk, tokenize=False)
    assert tokenizer.apply_chat_template(talk, tokenize=False) == said == "<|im_start|>user\nabc<|im_end|>\n"
    assert tokenizer("abch")["input_ids"] == its_tokenizer("abch")["input_ids"]
    assert len(tokenizer("abch")["input_ids"]) == 3


def test_a_copy_is_loaded_in_the_dtype_that_is_asked_for(tiny: Path) -> None:
    source = resolve_model(str(tiny))
    load_model(source)
    narrow = load_model(source, dtype=torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow.lm_head.weight, load_model(source).lm_head.weight.bfloat16())


def test_training_on_a_copy_leaves_the_copy_as_it_was(tiny: Path) -> None:
    source = resolve_model(str(tiny))
    load_model(source)
    model = load_model(source)
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    assert torch.equal(load_model(source).lm_head.weight, before)


def test_a_damaged_copy_is_said_removed_and_made_anew(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = resolve_model(str(tiny))
    expected = load_model(source).lm_head.weight.detach().clone()
    (weights,) = cache_folder("gguf").glob("*/model/model.safetensors")
    half = weights.read_bytes()[:100]
    weights.unlink()  # Not cut in place: models loaded before still read it.
    weights.write_bytes(half)
    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        assert torch.equal(load_model(source).lm_head.weight, expected)
    assert "cannot be read and is removed" in caplog.text
    assert not weights.exists()
    load_model(source)
    assert weights.exists()


def test_a_wrong_request_is_not_taken_for_a_damaged_copy(tiny: Path) -> None:
    source = resolve_model(str(tiny))
    load_model(source)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(source, attn_implementation="no such attention")
    assert parts() == ["model"]


def test_what_is_no_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and then something else")
    source = resolve_model(str(tmp_path / "bad.gguf"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(source)
    with pytest.raises(ModelError, match=r"tokenizer of model .* cannot be loaded"):
        load_tokenizer(source)
    assert parts() == []


def write_note(folder: Path) -> None:
    (folder / "note").write_text("whole")


@pytest.fixture
def any_file(tmp_path: Path) -> Path:
    (tmp_path / "any.gguf").write_bytes(b"content")
    return tmp_path / "any.gguf"


def test_a_copy_follows_the_content_and_the_versions(
    any_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {unpacked(any_file, "model", write_note)}
    (tmp_path / "renamed.gguf").write_bytes(b"content")
    found.add(unpacked(tmp_path / "renamed.gguf", "model", pytest.fail))
    assert len(found) == 1
    any_file.write_bytes(b"other content")
    found.add(unpacked(any_file, "model", write_note))
    monkeypatch.setattr(copies, "version", lambda package: "99")
    found.add(unpacked(any_file, "model", write_note))
    assert len(found) == 3


def test_no_copy_is_made_of_a_large_file_or_where_the_disk_is_nearly_full(
    any_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "LARGEST_FILE", 6)
    assert unpacked(any_file, "model", pytest.fail) is None
    monkeypatch.setattr(copies, "LARGEST_FILE", 7)
    monkeypatch.setattr(copies, "FREE_PER_BYTE", 1e18)
    assert unpacked(any_file, "model", pytest.fail) is None
    assert parts() == []


def test_a_large_file_is_copied_where_several_processes_would_unpack_it(
    any_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "LARGEST_FILE", 6)
    made = unpacked(any_file, "model", write_note, any_size=True)
    assert made is not None
    assert unpacked(any_file, "model", pytest.fail, any_size=True) == made


def test_a_disk_that_refuses_costs_the_copy_and_nothing_else(
    any_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.WARNING, logger="dynamic_dpo"):
        assert unpacked(any_file, "model", fill) is None
    assert "No space left" in caplog.text
    assert parts() == []
    monkeypatch.setenv("DYNAMIC_DPO_CACHE", str(any_file))  # A file stands where the folder should be.
    assert unpacked(any_file, "model", pytest.fail) is None

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DYNAMIC_DPO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert unpacked(any_file, "model", pytest.fail) is None


def test_an_interruption_leaves_no_half_copy(any_file: Path) -> None:
    def stop(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpacked(any_file, "model", stop)
    assert parts() == leftovers() == []


def test_of_processes_that_want_a_copy_at_a_time_one_makes_it(any_file: Path) -> None:
    made = []

    def write_slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.2)
        write_note(folder)

    found: list[Path | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(unpacked(any_file, "model", write_slowly)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(made)) == (4, 1)
    (folder,) = set(found)
    assert folder is not None
    assert (folder / "note").read_text() == "whole"
    assert parts() == ["model"]


def test_nobody_waits_for_ever(any_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "LONGEST_WAIT", 0.1)
    inner: list[Path | None] = []

    def take_long(folder: Path) -> None:
        inner.append(unpacked(any_file, "model", pytest.fail))
        write_note(folder)

    assert unpacked(any_file, "model", take_long) is not None
    assert inner == [None]


def test_what_a_killed_process_left_goes_when_the_copy_is_made(any_file: Path) -> None:
    def die(folder: Path) -> None:
        write_note(folder)
        os._exit(9)

    if (child := os.fork()) == 0:
        unpacked(any_file, "model", die)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(leftovers()) == 1
    assert unpacked(any_file, "model", write_note) is not None
    assert leftovers() == []
    assert parts() == ["model"]
