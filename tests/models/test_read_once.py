"""Under FSDP2 one rank reads a model's weights, and the others get theirs when it is sharded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from families.configurations import tiny_model
from helpers_ranks import SECONDS, launched
from tiny import tiny_llama


def large(folder: Path) -> int:
    """Save a random model in bfloat16; return the bytes of its float32 copy."""
    config = LlamaConfig(
        vocab_size=10000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).state_dict().items()}
    block = torch.randn(10_240_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    config.save_pretrained(folder)
    save_file(
        {name: block[: shape.numel()].reshape(shape).clone() for name, shape in shapes.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return sum(4 * shape.numel() for shape in shapes.values())


def small(folder: Path, *, declared: bool, head: str) -> Path:
    """Save a tiny model that is declared tied or not, its head left out, equal to the embeddings or another one."""
    model = tiny_llama()
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    if head == "none":
        del weights["lm_head.weight"]
    elif head == "equal":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": declared}))
    return folder


def with_saved_buffers(folder: Path) -> Path:
    """Save a tiny DeepSeek-V3: its routers' corrections are buffers that are saved with the weights."""
    torch.manual_seed(0)
    model = tiny_model("deepseek_v3")
    for name, value in model.named_buffers():
        if name in model.state_dict():
            value.normal_()
    model.save_pretrained(folder)
    return folder


@pytest.mark.timeout(SECONDS + 60)
def test_one_rank_reads_and_all_get_their_weights(tmp_path: Path) -> None:
    full_copy = large(tmp_path / "large")
    assert (tmp_path / "large" / "model.safetensors").stat().st_size > 400e6
    models = {
        "apart": small(tmp_path / "apart", declared=False, head="own"),
        "tied": small(tmp_path / "tied", declared=True, head="none"),
        "equal": small(tmp_path / "equal", declared=True, head="equal"),
        "wrongly_declared": small(tmp_path / "wrongly_declared", declared=True, head="own"),
        "buffers": with_saved_buffers(tmp_path / "buffers"),
    }
    first, second = launched(
        "distributed_loading.py",
        tmp_path / "run",
        tmp_path / "large",
        *models.values(),
        ranks=2,
        sharded=True,
    )

    assert first["large"]["devices"] == ["cpu"]
    assert second["large"]["devices"] == ["meta"]
    assert first["large"]["growth"] > 0.9 * full_copy
    assert second["large"]["growth"] < 0.25 * full_copy  # Half would do.

    for name, folder in models.items():
        assert first[name].pop("devices") == ["cpu"]
        assert second[name].pop("devices") == ["meta"]
        # After sharding the first rank gathers every weight, and the others' parts are as they are in the file.
        # transformers stacks the weights of experts when it reads them.
        apart = [key for key in load_file(folder / "model.safetensors") if ".experts." not in key]
        assert sorted(first[name].pop("equal")) == sorted(apart)
        assert second[name].pop("equal") == []
        assert first[name] == second[name]
        saved = load_file(folder / "model.safetensors")
        buffers = {key: torch.tensor(value) for key, value in second[name]["saved buffers"].items()}
        assert all(torch.equal(value, saved[key]) for key, value in buffers.items())
        assert bool(buffers) == (name == "buffers")
        assert first[name]["tied"] == first[name]["config"] == (name in ("tied", "equal"))
        assert not first[name]["training"]
        if name != "buffers":
            device, total = first[name]["buffers"]["model.rotary_emb.inv_freq"]
            assert device == "cpu"
            assert total == pytest.approx(sum(10000 ** (-2 * i / 8) for i in range(4)))

    assert "cannot be loaded" in first["broken"]
    assert first["broken"] == second["broken"]
