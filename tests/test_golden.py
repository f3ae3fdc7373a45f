"""What version 0.2 made of seeded runs is what this version makes of them, and what it left can be read.

The golden files and how they were made: `golden_runs.py`. Bits are compared where this machine's arithmetic is that
of the machine they were made on; elsewhere numbers may differ by the rounding of other instructions.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import golden_runs
from dynamic_dpo.cli import evaluate

GOLDEN = Path(__file__).parent / "golden" / "v0.2"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "runs.json").read_text())


@pytest.fixture(scope="module")
def same_arithmetic(golden: dict[str, Any]) -> bool:
    return golden_runs.arithmetic() == golden["arithmetic"]


def assert_same(ours: Any, theirs: Any, *, to_the_bit: bool, place: str = "") -> None:
    """Compare two structures of JSON; numbers to the bit, or within float32 rounding over eight steps."""
    ours, theirs = (json.loads(json.dumps(value)) for value in (ours, theirs))
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), place
        for key, value in theirs.items():
            if to_the_bit or not key.endswith("sha256"):
                assert_same(ours[key], value, to_the_bit=to_the_bit, place=f"{place}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for number, value in enumerate(theirs):
            assert_same(ours[number], value, to_the_bit=to_the_bit, place=f"{place}[{number}]")
    elif isinstance(theirs, float) and not to_the_bit:
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4), place
    else:
        assert ours == theirs, place


def test_a_difference_in_the_last_bit_is_seen() -> None:
    assert_same({"a": [0.1]}, {"a": [0.1]}, to_the_bit=True)
    with pytest.raises(AssertionError, match="a"):
        assert_same({"a": [0.1]}, {"a": [0.1 + 2**-56]}, to_the_bit=True)
    with pytest.raises(AssertionError):
        assert_same({"a": 0.11}, {"a": 0.1}, to_the_bit=False)


@pytest.mark.parametrize("name", golden_runs.RUNS)
def test_a_seeded_run_gives_the_numbers_of_version_0_2(
    tmp_path: Path, name: str, golden: dict[str, Any], same_arithmetic: bool
) -> None:
    assert_same(golden_runs.measure(name, tmp_path), golden["runs"][name], to_the_bit=same_arithmetic)


def test_a_run_that_version_0_2_began_ends_with_the_same_numbers(
    tmp_path: Path, golden: dict[str, Any], same_arithmetic: bool
) -> None:
    shutil.copytree(GOLDEN / "stopped", tmp_path / "run")
    trainer = golden_runs.make(golden_runs.STOPPED_RUN, tmp_path / "run")
    trainer.train(resume_from_checkpoint=True)

    expected = {k: v for k, v in golden["runs"][golden_runs.STOPPED_RUN].items() if k != "evaluation"}
    assert_same(golden_runs.end_of(trainer), expected, to_the_bit=same_arithmetic)


def test_an_evaluation_of_version_0_2_is_complete_and_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(GOLDEN, tmp_path / "v0.2")
    monkeypatch.chdir(tmp_path / "v0.2")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-no-server")
    paid = {name: Path("evaluation", name).read_bytes() for name in ("generations.jsonl", "judgements.jsonl")}
    for name in golden_runs.EVALUATED:
        Path("evaluation", name).unlink(missing_ok=name != "prompts.jsonl")
    shutil.copy(GOLDEN / "evaluation" / "prompts.jsonl", "evaluation/prompts.jsonl")

    # No server listens any more: whatever was asked anew would fail.
    assert evaluate.main(["--config", "evaluation.yaml"]) == 0

    for name, before in paid.items():
        assert Path("evaluation", name).read_bytes() == before
    summary, expected = (
        json.loads((folder / "evaluation" / "summary.json").read_text()) for folder in (Path(), GOLDEN)
    )
    # Format 2 reads intervals and p-value from one distribution, and has no sign test beside it.
    assert (summary.pop("format_version"), expected.pop("format_version")) == (2, 1)
    for pair in expected["pairs"]:
        del pair["test"], pair["p_holm"], pair["overall"]["interval"], pair["overall"]["decisive_interval"]
    for judge in expected["judges"]:
        del judge["bias"]["first_interval"]
    assert_numbers_equal(summary, expected)
    ours, theirs = (
        next(csv.DictReader((folder / "evaluation" / "results.csv").read_text().splitlines()))
        for folder in (Path(), GOLDEN)
    )
    for name in theirs:
        if not name.endswith(("_low", "_high")) and not name.startswith("sign_"):
            assert ours[name] == theirs[name], name


def assert_numbers_equal(ours: Any, theirs: Any, place: str = "") -> None:
    if isinstance(theirs, dict):
        assert set(ours) >= set(theirs), place
        for key, value in theirs.items():
            assert_numbers_equal(ours[key], value, f"{place}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for number, value in enumerate(theirs):
            assert_numbers_equal(ours[number], value, f"{place}[{number}]")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-12), place
    else:
        assert ours == theirs, place
