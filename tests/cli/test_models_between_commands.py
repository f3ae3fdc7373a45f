"""What any command writes as a model, every other reads: all outputs times all inputs, on tiny models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dynamic_dpo.cli import evaluate, memory, merge, rollout, score, train_dpo, train_sft
from dynamic_dpo.config import dump_yaml
from dynamic_dpo.models.adapters import find_model, open_model
from helpers_evaluation import write_hh_rows
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}w1 {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}w1 assistant {% endif %}"
)
OUTPUTS = (
    "train-sft",
    "train-sft, adapter",
    "train-dpo",
    "train-dpo, adapter",
    "checkpoint",
    "checkpoint, adapter",
    "checkpoint of train-sft, adapter",
    "merge",
    "merge of an adapter's checkpoint",
    "merge --into-base",
)


def settings_of(home: Path) -> dict[str, Any]:
    common = {
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "save_steps": 1,
        "max_steps": 1,
        "disable_tqdm": True,
    }
    return {
        "policy_name": str(home / "start"),
        "precision": "fp32",
        "dataset": {"dataset_name": str(home / "rows.jsonl"), "subset": "train", "val_ratio": 0},
        "dpo_training": {"save_dir": str(home / "dpo"), **common},
        "sft_training": {"save_dir": str(home / "sft"), **common},
        "rollout": {
            "output_dir": str(home / "rollout"),
            "responses_per_prompt": 2,
            "max_new_tokens": 4,
            "device": "cpu",
            "judge": "function",
            "function": "helpers_rollouts:length",
            "filters": {"truncated": False},
        },
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all the outputs: each has weights of its own."""
    home = tmp_path_factory.mktemp("home")
    tiny_llama().save_pretrained(home / "start")
    word_tokenizer(template=TEMPLATE).save_pretrained(home / "start")
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 8)))

    rows = [{"prompt": words(), "chosen": words(), "rejected": words()} for _ in range(8)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_hh_rows(home / "prompts.jsonl", 3)
    (home / "config.yaml").write_text(dump_yaml(settings_of(home)))
    for kind, extra in (("", []), (", adapter", ["peft.r=2"])):
        for command, main in (("dpo", train_dpo.main), ("sft", train_sft.main)):
            folder = home / f"train-{command}{kind}"
            arguments = ["--config", str(home / "config.yaml"), f"{command}_training.save_dir={folder}"]
            assert main([*arguments, *extra]) == 0
        (home / f"train-dpo{kind}" / "checkpoint-1").rename(home / f"checkpoint{kind}")
    checkpoints = home / "train-sft, adapter" / "checkpoint-1"
    checkpoints.rename(home / "checkpoint of train-sft, adapter")
    assert merge.main([str(home / "checkpoint"), str(home / "merge")]) == 0
    of_adapter = [str(home / "checkpoint, adapter"), str(home / "merge of an adapter's checkpoint")]
    assert merge.main(of_adapter) == 0
    assert merge.main([str(home / "train-dpo, adapter"), str(home / "merge --into-base"), "--into-base"]) == 0
    assert all((home / name).is_dir() for name in OUTPUTS)
    return home


def logits_of(folder: Path) -> torch.Tensor:
    model, _ = open_model(find_model(str(folder)), device="cpu", dtype="float32")
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[5, 6, 7, 8]])).logits
    return logits


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def as_policy(command: str, main: Callable[[list[str]], int], home: Path, model: Path, out: Path) -> None:
    arguments = ["--config", str(home / "config.yaml"), f"policy_name={model}"]
    assert main([*arguments, f"{command}_training.save_dir={out}"]) == 0
    assert is_adapter(out) == is_adapter(model)
    assert not torch.equal(logits_of(out), logits_of(model))


def dpo_policy(home: Path, model: Path, out: Path) -> None:
    as_policy("dpo", train_dpo.main, home, model, out)
    margins = json.loads((out / "logs" / "margins" / "margins.jsonl").read_text().splitlines()[0])
    assert abs(margins["mean"]) < 1e-4  # The reference is the model as it was.


def sft_policy(home: Path, model: Path, out: Path) -> None:
    as_policy("sft", train_sft.main, home, model, out)


def dpo_reference(home: Path, model: Path, out: Path) -> None:
    arguments = ["--config", str(home / "config.yaml"), f"ref_name={model}", f"dpo_training.save_dir={out}"]
    assert train_dpo.main(arguments) == 0
    margins = json.loads((out / "logs" / "margins" / "margins.jsonl").read_text().splitlines()[0])
    assert abs(margins["mean"]) > 1e-4


def scored(home: Path, model: Path, out: Path) -> None:
    pair = ["--model", str(model), "--reference", str(home / "start"), "--data", str(home / "rows.jsonl")]
    assert score.main([str(out), *pair, "--device", "cpu"]) == 0
    back = out.with_suffix(".back")
    pair = ["--model", str(home / "start"), "--reference", str(model), "--data", str(home / "rows.jsonl")]
    assert score.main([str(back), *pair, "--device", "cpu"]) == 0
    ours, theirs = (
        [json.loads(line)["margin"] for line in path.read_text().splitlines()] for path in (out, back)
    )
    assert ours == pytest.approx([-margin for margin in theirs], abs=1e-4)
    assert max(map(abs, ours)) > 1e-3


def evaluated(home: Path, model: Path, out: Path) -> None:
    config = {
        "dataset": {"name": str(home / "prompts.jsonl"), "max_samples": 3},
        "models": {"start": str(home / "start"), "trained": str(model)},
        "generation": {"max_new_tokens": 4, "device": "cpu"},
        "judge": {"kind": "function", "function": "helpers_rollouts:length"},
        "statistics": {"bootstrap": 100},
        "output": {"dir": str(out)},
    }
    path = out.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    assert evaluate.main(["--config", str(path)]) == 0
    outputs = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    assert len(outputs) == 6


def rolled_out(home: Path, model: Path, out: Path) -> None:
    arguments = ["--config", str(home / "config.yaml"), f"policy_name={model}", f"rollout.output_dir={out}"]
    assert rollout.main([*arguments, f"dataset.dataset_name={home / 'prompts.jsonl'}"]) == 0
    assert len((out / "outputs.jsonl").read_text().splitlines()) >= 3


def counted(home: Path, model: Path, out: Path) -> None:
    assert memory.main([str(model)]) == 0


def merged(home: Path, model: Path, out: Path) -> None:
    options = ["--into-base"] if is_adapter(model) else []
    is_checkpoint = (model / "manifest.json").is_file()
    if not options and not is_checkpoint:
        assert merge.main([str(model), str(out)]) == 2  # An ordinary model folder already.
        return
    assert merge.main([str(model), str(out), *options]) == 0
    AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits_of(out), logits_of(model), rtol=1e-5, atol=1e-5)


def test_shards_are_named_with_the_command_that_makes_a_model_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "adapter_config.json"):
        folder = tmp_path / name / "checkpoint-2"
        (folder / "pytorch_model_fsdp_0").mkdir(parents=True)
        (folder / name).write_text("{}")
        assert memory.main([str(folder)]) == 2
        assert f"make a model of it with dynamic-dpo merge {folder} OUT" in capsys.readouterr().err


INPUTS = [dpo_policy, sft_policy, dpo_reference, scored, evaluated, rolled_out, counted, merged]


@pytest.mark.parametrize("read", INPUTS)
@pytest.mark.parametrize("written", OUTPUTS)
def test_every_command_reads_what_any_has_written(
    written: str, read: Callable[[Path, Path, Path], None], home: Path, tmp_path: Path
) -> None:
    read(home, home / written, tmp_path / "out")
