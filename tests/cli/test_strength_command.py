"""``dynamic-dpo strength`` on runs of train-dpo: the curve, the page, the chosen model, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynamic_dpo.cli import main as umbrella
from dynamic_dpo.cli import train_dpo
from dynamic_dpo.config import dump_yaml
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.models.adapters import find_model, open_model
from tiny import VOCAB, tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NUM_HELD_OUT = 24


def rows(count: int, *, seed: int) -> str:
    """Return HH rows whose chosen answers are mostly of the first half of the words."""
    draw = random.Random(seed)

    def words(share: float) -> str:
        half = (VOCAB - 4) // 2
        return " ".join(f"w{draw.randrange(half) + half * (draw.random() >= share)}" for _ in range(6))

    lines = []
    for number in range(count):
        prompt = f"\n\nHuman: w{number} {words(0.5)}\n\nAssistant:"
        lines.append(json.dumps({"chosen": f"{prompt} {words(0.9)}", "rejected": f"{prompt} {words(0.1)}"}))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, data, and runs that went too far: of all weights, and of an adapter."""
    home = tmp_path_factory.mktemp("home")
    tiny_llama().save_pretrained(home / "base")
    word_tokenizer().save_pretrained(home / "base")
    (home / "rows.jsonl").write_text(rows(32, seed=0))
    (home / "held_out.jsonl").write_text(rows(NUM_HELD_OUT, seed=1))
    for name, more in (("full", {}), ("lora", {"peft": {"r": 4, "lora_alpha": 16}})):
        settings: dict[str, Any] = {
            "policy_name": str(home / "base"),
            "precision": "fp32",
            "dataset": {
                "dataset_name": str(home / "rows.jsonl"),
                "eval_dataset_name": str(home / "held_out.jsonl"),
                "subset": "train",
            },
            "method": {"name": "dpo"},
            "dpo": {"beta": 2.0},
            "dpo_training": {
                "save_dir": str(home / name),
                "batch_size": 4,
                "gradient_accumulation": 1,
                "learning_rate": 1e-3,
                "warmup_steps": 0,
                "epochs": 8,
                "eval_steps": 12,
                "disable_tqdm": True,
            },
            **more,
        }
        (home / f"{name}.yaml").write_text(dump_yaml(settings))
        assert train_dpo.main(["--config", str(home / f"{name}.yaml")]) == 0
    return home


@pytest.fixture
def work(home: Path, tmp_path: Path) -> Path:
    """Return a place with copies of the runs; base and data stay where they are."""
    for name in ("full", "lora"):
        shutil.copytree(home / name, tmp_path / name, ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path


def strength(*arguments: object) -> int:
    return umbrella.main(["strength", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_gives_a_curve_a_page_and_a_model(
    work: Path, home: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = work / kind, work / "chosen"
    assert strength(run, "--out", out) == 0
    shown = capsys.readouterr().out
    record = json.loads((run / "strength.json").read_text())
    points = {point["strength"]: point for point in record["points"]}
    assert (len(points), record["passes"], record["num_pairs"]) == (10, 10, NUM_HELD_OUT)
    assert record["beta"] == 2.0
    # The run's own last evaluation, and where every run begins.
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    last = [entry for entry in history if "eval_loss" in entry][-1]
    assert points[1.0]["loss"] == pytest.approx(last["eval_loss"], rel=1e-4)
    assert points[1.0]["accuracy"] == pytest.approx(last["eval_rewards/accuracies"], abs=1e-6)
    assert points[0.0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    chosen = record["chosen"]
    assert points[chosen]["loss"] == min(point["loss"] for point in points.values())
    assert 0 < chosen < 1
    assert f"strength {chosen:g}, by the least held-out loss" in shown
    assert "What this is not" in (run / "strength.html").read_text()

    # What was written has the loss that was shown: by a command that knows nothing of strengths.
    scores = work / "scores.jsonl"
    arguments = ["score", scores, "--model", out, "--data", home / "held_out.jsonl", "--device", "cpu"]
    if kind == "full":
        arguments += ["--reference", home / "base"]
    assert umbrella.main([*map(str, arguments)]) == 0
    margins = [json.loads(line)["margin"] for line in scores.read_text().splitlines()]
    loss = torch.nn.functional.softplus(-2.0 * torch.tensor(margins)).mean()
    assert float(loss) == pytest.approx(points[chosen]["loss"], rel=1e-4)
    assert (out / "adapter_config.json").is_file() is (kind == "lora")
    AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_strengths_one_and_zero_are_written_as_policy_and_reference(
    work: Path, home: Path, kind: str
) -> None:
    for number in (0, 1):
        out = work / f"at{number}"
        assert strength(work / kind, "--grid", "1", "--strength", number, "--out", out) == 0
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    policy, same = load_file(work / kind / name), load_file(work / "at1" / name)
    assert policy.keys() == same.keys()
    for key, weight in policy.items():
        assert torch.equal(weight, same[key]), key
    nothing, _ = open_model(find_model(str(work / "at0")), device="cpu", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(home / "base").eval()
    ids = torch.arange(4, 40)[None]
    assert torch.equal(nothing(ids).logits, base(ids).logits)


def test_points_that_are_there_are_not_scored_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored, score = [], PairScorer.score

    def counted(scorer: Any, model: Any, pairs: Any, **options: Any) -> Any:
        scored.append(len(pairs))
        return score(scorer, model, pairs, **options)

    monkeypatch.setattr(PairScorer, "score", counted)
    run = work / "full"
    assert strength(run) == 0
    assert sum(scored) == 10 * NUM_HELD_OUT < 12 * NUM_HELD_OUT
    first = json.loads((run / "strength.json").read_text())
    # A kill leaves the points that were done, and perhaps half a line.
    lines = (run / "strength_points.jsonl").read_text().splitlines()
    (run / "strength_points.jsonl").write_text("\n".join(lines[:4]) + '\n{"key": "')
    scored.clear()
    assert strength(run) == 0
    assert sum(scored) == 7 * NUM_HELD_OUT  # Six strengths, and the reference.
    again = json.loads((run / "strength.json").read_text())
    assert (again.pop("passes"), first.pop("passes")) == (7, 10)
    assert again == first
    scored.clear()
    assert strength(run, "--choose", "accuracy") == 0
    assert scored == []
    assert json.loads((run / "strength.json").read_text())["chosen_by"] == "the greatest accuracy"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert strength(*arguments) in (1, 2)
    return capsys.readouterr().err


def change(run: Path, **settings: dict[str, Any]) -> None:
    """Change the saved settings of a run."""
    from dynamic_dpo.config import load_yaml

    config = load_yaml(str(run / "config.yaml"))
    for section, values in settings.items():
        config[section] = {**(config[section] or {}), **values} if isinstance(values, dict) else values
    (run / "config.yaml").write_text(dump_yaml(config))


def test_bad_input_is_refused_in_a_sentence(
    work: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = work / "full"
    assert "--grid takes finite numbers of at least 0" in refused(capsys, run, "--grid", "0,one")
    assert "--strength takes finite numbers" in refused(capsys, run, "--strength", "-1")
    assert "is there already and not empty" in refused(capsys, run, "--out", home)
    assert "holds no config.yaml" in refused(capsys, home / "base")

    change(run, policy_name=str(home / "gone"))  # type: ignore[arg-type]
    assert "the reference of the run" in (said := refused(capsys, run))
    assert "is not where it was" in said
    moved = home / "other"
    tiny_llama(seed=3).save_pretrained(moved)
    word_tokenizer().save_pretrained(moved)
    change(run, policy_name=str(moved))  # type: ignore[arg-type]
    assert "is not the one that the run had: its weights have changed since" in refused(capsys, run)
    change(run, policy_name=str(home / "base"))  # type: ignore[arg-type]

    (work / "rows.jsonl").write_text(rows(16, seed=2))
    change(run, dataset={"eval_dataset_name": str(work / "rows.jsonl")})
    assert "has changed since it was trained (held_out)" in refused(capsys, run)
    change(
        run,
        dataset={"eval_dataset_name": str(home / "held_out.jsonl"), "dataset_name": str(work / "rows.jsonl")},
    )
    assert "has changed since it was trained (train)" in refused(capsys, run)
    change(
        run, dataset={"dataset_name": str(home / "rows.jsonl"), "eval_dataset_name": None, "val_ratio": 0.0}
    )
    assert "has no held-out pairs to choose by" in refused(capsys, run)

    change(run, method={"name": "simpo"}, dpo={"beta": None})
    assert "the run's method, simpo, has no reference" in refused(capsys, run)
    change(run, method={"name": "dpo"}, reference_sync={"steps": 3})
    assert "has followed its policy" in refused(capsys, run)
    change(run, reference_sync={"steps": None})
    (run / "model.safetensors").unlink()
    assert "holds no model of the run" in refused(capsys, run)
    (run / "run_summary.json").unlink()
    assert "has not come to its end" in refused(capsys, run)
    assert not (run / "strength.json").exists()


def test_a_record_without_fingerprints_is_warned_of(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = work / "lora"
    summary = json.loads((run / "run_summary.json").read_text())
    assert set(summary.pop("fingerprints")) == {"train", "held_out", "reference"}
    (run / "run_summary.json").write_text(json.dumps(summary))
    assert strength(run, "--grid", "1") == 0
    assert "whether they changed cannot be seen" in capsys.readouterr().err
