"""``dynamic-dpo export``: an evaluation's outputs and verdicts leave for other tools, and come back the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamic_dpo.cli import evaluate
from dynamic_dpo.cli.main import main
from dynamic_dpo.eval.exchange import (
    import_alpaca_annotations,
    import_alpaca_outputs,
    import_arena_hard_judgements,
)
from dynamic_dpo.eval.judging.ledger import read_ledger
from dynamic_dpo.eval.prompts.sets import read_prompts
from dynamic_dpo.eval.statistics.comparisons import compare
from helpers_evaluation import save_models, write_config, write_hh_rows


def length(output: str) -> float:
    """Judge by length, as a careless judge would."""
    return float(len(output))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of an evaluation that has run, judged without a server; its results lie in ``out``."""
    folder = tmp_path_factory.mktemp("evaluation")
    rows = write_hh_rows(folder / "harmless-base.jsonl", 9)
    judge = {"kind": "function", "function": "test_export:length"}
    config = write_config(folder / "out", save_models(folder), rows, "x")
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"judge": judge}))
    assert evaluate.main(["--config", str(config)]) == 0
    return config


def export(config: Path, form: str, out: Path, *options: str) -> int:
    return main(["export", "--config", str(config), "--to", form, "--out", str(out), *options])


def test_outputs_are_those_of_the_named_model(judged: Path, tmp_path: Path) -> None:
    prompts = read_prompts(judged.parent / "out" / "prompts.jsonl")
    generations = (judged.parent / "out" / "generations.jsonl").read_text().splitlines()
    written = {(row["id"], row["model"]): row["text"] for row in map(json.loads, generations)}
    for options, model in ((), "trained"), (("--model", "start"), "start"):
        path = tmp_path / f"{model}.json"
        assert export(judged, "alpaca-outputs", path, *options) == 0
        outputs = import_alpaca_outputs(path, prompts).outputs
        assert {(o.id, o.model): o.text for o in outputs} == {
            k: v for k, v in written.items() if k[1] == model
        }
        assert len(outputs) == 6


def test_verdicts_count_the_same_in_every_form(judged: Path, tmp_path: Path) -> None:
    own = compare(read_ledger(judged.parent / "out" / "judgements.jsonl"), "trained", "start").counts
    assert own.num_valid == 12
    assert 0 < own.rate < 1
    arena, alpaca = tmp_path / "trained.jsonl", tmp_path / "annotations.json"
    assert export(judged, "arena-hard", arena) == 0
    assert compare(import_arena_hard_judgements(arena), "trained", "start").counts == own
    assert export(judged, "alpaca-annotations", alpaca, "--against", "start") == 0
    # Both orders of a question are one annotation there.
    assert compare(import_alpaca_annotations(alpaca).judgements, "trained", "start").counts.rate == own.rate


def test_the_other_direction_may_be_asked_for(judged: Path, tmp_path: Path) -> None:
    path = tmp_path / "start.jsonl"
    assert export(judged, "arena-hard", path, "--model", "start", "--against", "trained") == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(line["model"], line["baseline"]) for line in lines} == {("start", "trained")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "alpaca-outputs"], "needs --out"),
        (["--out", "new.json"], "needs --to"),
        (["--to", "alpaca-outputs", "--out", "new.json", "--against", "start"], "no effect on outputs"),
        (
            ["--to", "alpaca-outputs", "--out", "new.json", "--model", "other"],
            "--model must be one of models",
        ),
        (
            ["--to", "arena-hard", "--out", "new.json", "--against", "other"],
            "--against must be one of models",
        ),
        (["--to", "arena-hard", "--out", "new.json", "--model", "start"], "are both 'start'"),
        (["--to", "arena-hard", "--out", "kept.json"], "is there already"),
        (["--to", "arena-hard", "--out", "new.json", "output.dir=empty"], "nothing of the stage"),
    ],
)
def test_a_mistake_is_named_and_writes_nothing(
    judged: Path,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept.json").write_text("mine")
    assert main(["export", "--config", str(judged), *options]) == 2
    assert message in capsys.readouterr().err
    assert Path("kept.json").read_text() == "mine"
    assert not Path("new.json").exists()


def test_with_several_models_the_name_is_asked_for(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = ["models={a: x, b: y, c: z}", "baseline=a"]
    assert export(judged, "arena-hard", tmp_path / "out.jsonl", *third) == 2
    assert "one of b, c" in capsys.readouterr().err
