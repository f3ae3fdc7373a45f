"""The commands that train, on two ranks by `accelerate launch` with the shipped FSDP2 file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynamic_dpo.cli import merge, train_dpo, train_sft
from dynamic_dpo.config import dump_yaml
from dynamic_dpo.trainers.checkpoints.file_list import fault_of
from dynamic_dpo.trainers.checkpoints.shards import ModelShards
from helpers_ranks import SECONDS, launched, run_ranks
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}w1 {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}w1 assistant {% endif %}"
)
# What a run that ends in order never prints.
UNCLEAN = ("Traceback", "destroy_process_group", "SIGABRT", "resource_tracker", "error:")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    tiny_llama().save_pretrained(model)
    word_tokenizer(template=TEMPLATE).save_pretrained(model)
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 8)))

    rows = [{"prompt": words(), "chosen": words(), "rejected": words()} for _ in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "config.yaml"
    common = {
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "log_steps": 1,
        "save_steps": 2,
        "max_steps": 2,
        "disable_tqdm": True,
    }
    settings = {
        "policy_name": str(model),
        "precision": "fp32",
        "dataset": {"dataset_name": str(tmp_path / "rows.jsonl"), "val_ratio": 0.1},
        "dpo_training": {"save_dir": str(tmp_path / "dpo"), **common},
        "sft_training": {"save_dir": str(tmp_path / "sft"), "save_only_model": False, **common},
    }
    path.write_text(dump_yaml(settings), encoding="utf-8")
    return path


def run(command: str, config: Path, folder: Path, *settings: str) -> None:
    arguments = ["-m", f"dynamic_dpo.cli.{command}", "--config", config, *settings]
    status, output = run_ranks(arguments, folder, 2, sharded=True)
    assert status == 0, output[-4000:]
    assert [word for word in UNCLEAN if word in output] == []
    assert output.count("saved and checked") == 1


@pytest.mark.timeout(SECONDS + 30)
def test_train_dpo_leaves_the_model_that_its_last_shards_hold(config: Path, tmp_path: Path) -> None:
    run("train_dpo", config, tmp_path)
    final, checkpoint = tmp_path / "dpo", tmp_path / "dpo" / "checkpoint-2"
    assert fault_of(checkpoint) is None
    shards = ModelShards(checkpoint)
    weights = shards.load(shards.names)
    reloaded = AutoModelForCausalLM.from_pretrained(final).state_dict()
    assert reloaded.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in reloaded.items())
    moved = [
        name for name, value in tiny_llama().state_dict().items() if not torch.equal(value, weights[name])
    ]
    assert len(moved) == len(weights)
    # An interrupted run would have these shards alone.
    assert merge.main([str(checkpoint), str(tmp_path / "merged")]) == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in merged.items())
    assert AutoTokenizer.from_pretrained(final).chat_template == TEMPLATE


@pytest.mark.timeout(SECONDS + 30)
def test_train_sft_leaves_the_adapter_that_its_last_shards_hold(config: Path, tmp_path: Path) -> None:
    run("train_sft", config, tmp_path, "peft.r=2", "peft.target_modules=[q_proj,v_proj]")
    shards = ModelShards(tmp_path / "sft" / "checkpoint-2")
    weights = shards.load(shards.names)
    saved = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert saved.keys() == weights.keys()
    assert len(saved) == 8
    assert all(torch.equal(value, weights[name]) for name, value in saved.items())
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in saved.items())
    assert merge.main([str(tmp_path / "sft" / "checkpoint-2"), str(tmp_path / "merged")]) == 0
    merged = load_file(tmp_path / "merged" / "adapter_model.safetensors")
    assert merged.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in merged.items())


@pytest.mark.timeout(3 * SECONDS + 60)
@pytest.mark.parametrize("reference", ["adapter", "base"])
def test_a_sharded_training_goes_on_with_an_adapter_as_one_process_does(
    config: Path, tmp_path: Path, reference: str
) -> None:
    peft = ("peft.r=2", "peft.target_modules=[q_proj,v_proj]", "sft_training.learning_rate=0.01")
    assert train_sft.main(["--config", str(config), *peft]) == 0
    settings = [f"policy_name={tmp_path / 'sft'}"]
    settings += [f"ref_name={tmp_path / 'model'}"] if reference == "base" else []
    # Two processes take as many pairs a step as one of twice the batch.
    run("train_dpo", config, tmp_path, *settings)
    sharded, single = tmp_path / "dpo", tmp_path / "single"
    settings += [f"dpo_training.save_dir={single}", "dpo_training.batch_size=8"]
    assert train_dpo.main(["--config", str(config), *settings]) == 0
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (sharded, single))
    before = load_file(tmp_path / "sft" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys() == before.keys()
    for name, value in ours.items():
        assert not torch.equal(value, before[name]), name
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(SECONDS + 30)
def test_what_cannot_be_carried_out_ends_every_rank_and_is_said_once(config: Path, tmp_path: Path) -> None:
    ranks = launched("distributed_commands.py", tmp_path / "ranks", config, ranks=2)
    for name, sentence in {
        "wrong setting": "risk_test.delta must lie in (0, 1), got 7",
        "no file": "not_there",
        "taken": "is not empty: resume the run in it with resume=true, choose another save_dir, or remove it",
        "no model": "model './nowhere': expected a folder with config.json",
    }.items():
        assert [code for code, _ in (result[name] for result in ranks)] == [2, 2]
        spoken = [text for _, text in (result[name] for result in ranks) if text]
        assert len(spoken) == 1, spoken
        assert sentence in spoken[0]
        assert spoken[0].count("error:") == 1
    assert [result["own"] for result in ranks] == [
        f"rank {rank} has a fault of its own: False" for rank in range(2)
    ]
