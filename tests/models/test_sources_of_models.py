"""Where models come from, and what identifies their weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.sources import (
    file_fingerprint,
    load_model,
    load_tokenizer,
    resolve_model,
    weights_fingerprint,
)
from families.configurations import tiny_model
from families.family_check import some_pairs
from tiny import tiny_llama, word_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_of_pictures_and_text_loads_and_scores_text_as_alone(tmp_path: Path) -> None:
    model = tiny_model("qwen2_5_vl")
    model.save_pretrained(tmp_path)
    loaded = load_model(resolve_model(str(tmp_path)))
    assert type(loaded) is type(model)
    scorer = PairScorer(loaded)
    assert scorer.layout == "packed"
    pairs = some_pairs()
    scored = torch.stack(scorer.score(loaded, pairs)[:2], 1)
    sequences = [(p, c) for p, both in zip(pairs.prompts, pairs.completions, strict=True) for c in both]
    for ours, (prompt, completion) in zip(scored.flatten(), sequences, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
        torch.testing.assert_close(ours, logps.sum(), rtol=1e-5, atol=1e-5)


def package_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *files: str) -> None:
    package = folder / "carries_weights"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in files:
        (package / name).write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("carries_weights", None)


def test_a_folder_a_file_a_package_and_a_hub_name_are_told_apart(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_with(monkeypatch, tmp_path, "small.gguf")
    package = tmp_path / "carries_weights"
    assert resolve_model(str(saved)).location == str(saved)
    assert resolve_model(str(saved)).load_kwargs == {}
    for name in ("package:carries_weights", str(package / "small.gguf"), str(package)):
        source = resolve_model(name)
        assert (source.name, source.location, source.gguf_file) == (name, str(package), "small.gguf")
        assert source.load_kwargs == {"gguf_file": "small.gguf"}
    hub = resolve_model("org/model")
    assert (hub.location, hub.gguf_file) == ("org/model", None)


def test_names_that_lead_nowhere_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_with(monkeypatch, tmp_path, "a.gguf", "b.gguf")
    (tmp_path / "note.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "package:not_installed_anywhere": "no installed package 'not_installed_anywhere'",
        "package:os": "no installed package 'os' with files of its own",
        "package:../up": "no installed package",
        "package:carries_weights": "exactly one .gguf file .* found a.gguf, b.gguf",
        str(tmp_path / "empty"): "found none",
        str(tmp_path / "missing.gguf"): "no such .gguf file",
        str(tmp_path / "note.txt"): "expected a folder with config.json",
        "./nowhere": "expected a folder with config.json",
    }.items():
        with pytest.raises(ModelError, match=message):
            resolve_model(name)


def test_a_model_is_loaded_in_float32_unless_told_otherwise(saved: Path) -> None:
    model = load_model(resolve_model(str(saved)))
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, tiny_llama().lm_head.weight)
    assert load_model(resolve_model(str(saved)), dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_tokenizer(resolve_model(str(saved)))("w1 w2")["input_ids"] == [5, 6]


def test_what_cannot_be_loaded_is_said_with_the_librarys_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    source = resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*no_such_type"):
        load_model(source)
    with pytest.raises(ModelError, match=r"tokenizer of model .* cannot be loaded"):
        load_tokenizer(source)


def test_a_fingerprint_follows_the_weights_and_the_configuration(saved: Path) -> None:
    source = resolve_model(str(saved))
    first = file_fingerprint(source)
    (saved / "README.md").write_text("a note")
    assert file_fingerprint(source) == first
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    second = file_fingerprint(source)
    weights = saved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert len({first, second, file_fingerprint(source)}) == 3


def test_a_source_without_weights_has_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weight files"):
        file_fingerprint(resolve_model(str(tmp_path)))
    with pytest.raises(ModelError, match="not in the local cache"):
        file_fingerprint(resolve_model("nobody/nothing-of-this-name"))


def test_a_gguf_files_fingerprint_is_that_files_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(b"same")
    (tmp_path / "b" / "other.txt").write_text("x")
    first, second = (
        file_fingerprint(resolve_model(str(tmp_path / name / "model.gguf"))) for name in ("a", "b")
    )
    assert first == second


def test_a_models_own_fingerprint_follows_values_dtype_and_nothing_else() -> None:
    model = tiny_llama()
    first = weights_fingerprint(model)
    assert weights_fingerprint(tiny_llama()) == first
    assert weights_fingerprint(tiny_llama(seed=1)) != first
    assert weights_fingerprint(tiny_llama(dtype=torch.bfloat16)) != first
    model.eval().requires_grad_(False)
    assert weights_fingerprint(model) == first
    model.lm_head.weight.data[0, 0] += 1e-6
    assert weights_fingerprint(model) != first
