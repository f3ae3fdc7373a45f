"""``dynamic-dpo merge``: model folders from checkpoints, without the run, its ranks or its devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from dynamic_dpo.cli import merge
from dynamic_dpo.models.sources import load_model, resolve_model
from dynamic_dpo.trainers.checkpoints.file_list import write_file_list
from dynamic_dpo.trainers.checkpoints.saved import write_settings
from dynamic_dpo.trainers.checkpoints.shards import MODEL_SHARDS
from families.configurations import tiny_model
from tiny import tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*a single process")
TEMPLATE = "{{ messages }}"


def sharded(folder: Path, model: Any, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a checkpoint as a sharded run does; that of ranks is in the tests of the commands that train."""
    weights = dict(model.state_dict()) if weights is None else weights
    dcp.save({"model": weights}, storage_writer=dcp.FileSystemWriter(folder / MODEL_SHARDS), no_dist=True)
    dcp.save(
        {"optimizer": {"lr": 0.1}}, storage_writer=dcp.FileSystemWriter(folder / "optimizer_0"), no_dist=True
    )
    write_settings(folder, model, word_tokenizer(template=TEMPLATE))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "controller_state.json").write_text("{}")
    write_file_list(folder)
    return folder


def tied_llama() -> LlamaForCausalLM:
    model = tiny_llama()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=96,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )


def of_pictures() -> Any:
    return tiny_model("qwen2_5_vl")


@pytest.mark.parametrize(
    "make", [tiny_llama, tied_llama, mixtral, of_pictures, lambda: tiny_llama(dtype=torch.bfloat16)]
)
@pytest.mark.parametrize("file_gb", ["5", "0.00001"])
def test_shards_become_what_save_pretrained_writes(
    make: Any, file_gb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = make(), tmp_path / "new" / "out"
    checkpoint = sharded(tmp_path / "checkpoint-4", model)
    assert merge.main([str(checkpoint), str(out), "--file-gb", file_gb]) == 0
    model.save_pretrained(tmp_path / "saved")
    expected = load_file(tmp_path / "saved" / "model.safetensors")
    files = sorted(out.glob("*.safetensors"))
    found = {name: value for path in files for name, value in load_file(path).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert (len(files) > 1) == (out / "model.safetensors.index.json").is_file() == (file_gb != "5")

    reloaded = load_model(resolve_model(str(out)), dtype="auto")
    assert type(reloaded) is type(model)
    for name, value in reloaded.state_dict().items():
        assert value.dtype == model.dtype
        assert torch.equal(value, model.state_dict()[name]), name
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert not [path.name for path in out.iterdir() if "state" in path.name or path.name == "manifest.json"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    said = capsys.readouterr().out
    assert f"holds the model of {checkpoint}, put together from shards; {len(expected)} tensors" in said


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, Any]:
    """A sharded checkpoint of an adapter, and the model with it."""
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    word_tokenizer(template=TEMPLATE).save_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return sharded(tmp_path / "checkpoint-4", model, get_peft_model_state_dict(model)), model


def test_shards_of_an_adapter_become_an_adapter(
    adapter: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, model = adapter
    assert merge.main([str(checkpoint), str(tmp_path / "out")]) == 0
    reloaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "out")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in reloaded.state_dict().items())
    assert "holds the adapter" in capsys.readouterr().out


def test_an_adapter_is_merged_into_its_base_when_asked(adapter: tuple[Path, Any], tmp_path: Path) -> None:
    checkpoint, model = adapter
    assert merge.main([str(checkpoint), str(tmp_path / "out"), "--into-base"]) == 0
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(reloaded(tokens).logits, model.eval()(tokens).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(reloaded(tokens).logits, tiny_llama().eval()(tokens).logits, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


@pytest.mark.parametrize("writer", ["a run that came to its end", "peft", "another trainer's checkpoint"])
def test_the_folder_of_an_adapter_is_merged_into_its_base(
    writer: str, adapter: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, model = adapter
    folder = tmp_path / ("run" if writer != "another trainer's checkpoint" else "checkpoint-8")
    model.save_pretrained(folder)
    if writer != "peft":
        word_tokenizer(template="{{ 'other' }}").save_pretrained(folder)
        (folder / "trainer_state.json").write_text("{}")
    assert merge.main([str(folder), str(tmp_path / "out")]) == 2
    assert "is the folder of an adapter, which every command reads as it is: --into-base" in (
        capsys.readouterr().err
    )
    assert merge.main([str(folder), str(tmp_path / "out"), "--into-base"]) == 0
    assert "its adapter merged into the base; 21 tensors" in capsys.readouterr().out
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(reloaded(tokens).logits, model.eval()(tokens).logits, atol=1e-5, rtol=1e-5)
    template = TEMPLATE if writer == "peft" else "{{ 'other' }}"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_an_adapter_that_is_damaged_or_a_checkpoint_without_its_list_is_not_merged(
    adapter: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, model = adapter
    (checkpoint / "manifest.json").unlink()
    assert merge.main([str(checkpoint), str(tmp_path / "out"), "--into-base"]) == 2
    assert "its writing was never finished" in capsys.readouterr().err
    model.save_pretrained(tmp_path / "run")
    weights = tmp_path / "run" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert merge.main([str(tmp_path / "run"), str(tmp_path / "out"), "--into-base"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_sharded_is_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "checkpoint-4", tmp_path / "out"
    tiny_llama().save_pretrained(checkpoint)
    word_tokenizer().save_pretrained(checkpoint)
    for name in ("optimizer.pt", "trainer_state.json", "rng_state.pth"):
        (checkpoint / name).write_text("{}")
    write_file_list(checkpoint)
    out.mkdir()  # Empty, it may be there.
    assert merge.main([str(checkpoint), str(out)]) == 0
    assert f"copied: {checkpoint} is not sharded; 21 tensors" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (out / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_what_an_earlier_version_did_not_keep_is_taken_from_the_model_that_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, trained = sharded(tmp_path / "checkpoint-4", tiny_llama()), tmp_path / "trained"
    for path in [
        *checkpoint.glob("*config.json"),
        *checkpoint.glob("tokenizer*"),
        *checkpoint.glob("*.jinja"),
    ]:
        path.unlink(missing_ok=True)
    write_file_list(checkpoint)
    assert merge.main([str(checkpoint), str(tmp_path / "out")]) == 2
    assert "has no config.json and no tokenizer_config.json" in (said := capsys.readouterr().err)
    assert "with --model" in said
    tiny_llama(seed=1).save_pretrained(trained)
    word_tokenizer(template=TEMPLATE).save_pretrained(trained)
    assert merge.main([str(checkpoint), str(tmp_path / "out"), "--model", str(trained)]) == 0
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(reloaded.lm_head.weight, tiny_llama().lm_head.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def other_model(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    write_file_list(checkpoint)


def no_model(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / MODEL_SHARDS)
    write_file_list(checkpoint)


def no_list_of_shards(checkpoint: Path) -> None:
    (checkpoint / MODEL_SHARDS / ".metadata").unlink()
    write_file_list(checkpoint)


def flipped(checkpoint: Path) -> None:
    (path,) = (checkpoint / MODEL_SHARDS).glob("*.distcp")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda checkpoint: shutil.rmtree(checkpoint), "no checkpoint at"),
        (lambda checkpoint: (checkpoint / "manifest.json").unlink(), "its writing was never finished"),
        (lambda checkpoint: (checkpoint / "config.json").unlink(), "config.json is missing"),
        (flipped, "does not have the content it was written with"),
        (other_model, "9 tensors differ, such as model.layers.2."),
        (no_model, "holds no model, neither pytorch_model_fsdp_0 nor *.safetensors"),
        (no_list_of_shards, ".metadata is missing"),
    ],
)
def test_what_cannot_be_merged_is_said_and_leaves_nothing(
    spoil: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = sharded(tmp_path / "checkpoint-4", tiny_llama())
    spoil(checkpoint)
    assert merge.main([str(checkpoint), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("error:") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint-4"}


def test_a_folder_with_something_in_it_is_never_written_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = sharded(tmp_path / "checkpoint-4", tiny_llama())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    for out in ("out", "out/mine.txt", "checkpoint-4"):
        assert merge.main([str(checkpoint), str(tmp_path / out)]) == 2
        assert "is there already and not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    for options, sentence in {
        ("--into-base",): "--into-base is for adapters",
        ("--file-gb", "0"): "--file-gb must be above 0, got 0",
    }.items():
        assert merge.main([str(checkpoint), str(tmp_path / "new"), *options]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_memory_is_that_of_a_file_not_of_the_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=256, hidden_size=512, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=8
    )
    model = LlamaForCausalLM(config)
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    checkpoint = sharded(tmp_path / "checkpoint-4", model)
    merge.main([str(sharded(tmp_path / "warm-up", tiny_llama())), str(tmp_path / "warmed")])
    del model
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("this system does not say how much memory a process has used")

    def peak() -> int:
        return 1024 * int(
            next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        )

    Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far.
    before = peak()
    assert merge.main([str(checkpoint), str(tmp_path / "out"), "--file-gb", "0.012"]) == 0
    assert size > 150e6
    assert peak() - before < size / 3
