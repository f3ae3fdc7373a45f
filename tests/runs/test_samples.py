"""What is counted of samples by hand, which lines a resumed run keeps, and how the page shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.runs.page import write_run_report
from dynamic_dpo.runs.samples import (
    SamplingConfig,
    kept_rows,
    repetition_rate,
    sample_figures,
    samples_in,
    times_to_show,
)
from helpers_pages import Page
from hostile_texts import HARMLESS, HOSTILE


def row(step: int, prompt: str = "a", text: str = "b", **more: Any) -> dict[str, Any]:
    own = {"num_tokens": 3, "finished": True, "repetition": None, "scores": {}}
    return {"step": step, "prompt_id": prompt, "prompt": f"prompt {prompt}", "text": text, **own, **more}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.mark.parametrize(
    ("ids", "rate"),
    [
        ([1, 2, 3, 4], 0.0),  # one 4-gram
        ([1, 1, 1, 1, 1, 1], 2 / 3),  # three, of which one is new
        ([1, 2, 3, 4, 1, 2, 3, 4], 0.2),  # five: 1234 2341 3412 4123 1234
        ([1, 2, 3], math.nan),
        ([], math.nan),
    ],
)
def test_repetition_is_the_share_of_pieces_that_came_before(ids: list[int], rate: float) -> None:
    assert repetition_rate(ids) == pytest.approx(rate, nan_ok=True)


def test_outputs_too_short_to_repeat_anything_repeat_nothing() -> None:
    assert sample_figures([row(0), row(0)]) == {
        "samples/length": 3.0,
        "samples/stopped": 1.0,
        "samples/repetition": 0.0,
    }


def test_a_resumed_run_keeps_what_lies_before_its_checkpoint_and_whole_times_alone(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert kept_rows(path, until=10, num_prompts=2) == []
    rows = [row(step, prompt) for step in (0, 5, 10, 15) for prompt in "ab"]
    write(path, rows)
    assert kept_rows(path, until=10, num_prompts=2) == rows[:6]
    assert kept_rows(path, until=9, num_prompts=2) == rows[:4]
    write(path, rows[:5])
    assert kept_rows(path, until=10, num_prompts=2) == rows[:4]


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 2 of .* is no sample: it needs step, prompt_id, prompt and text"
    ):
        samples_in(write(tmp_path / "samples.jsonl", [row(0), {"step": 1}]))


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 3, 4]), (101, [0, 33, 67, 100])]
)
def test_of_many_times_the_first_and_the_last_are_shown_and_some_between(
    count: int, shown: list[int]
) -> None:
    assert times_to_show([*range(count)] * 2, 4) == shown


def test_settings_out_of_range_are_said_with_their_key() -> None:
    with pytest.raises(ConfigError, match="every must be at least 1, got 0"):
        SamplingConfig(every=0)
    assert SamplingConfig().draws_from_the_model
    assert not SamplingConfig(top_p=0.9).draws_from_the_model


def run_with(folder: Path, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> Page:
    folder.mkdir()
    write(folder / "samples.jsonl", rows)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return Page(write_run_report(folder))


def test_the_page_shows_every_prompt_side_by_side_over_time(tmp_path: Path) -> None:
    rows = [
        row(
            step,
            prompt,
            f"text {prompt} at {step}",
            finished=step < 400,
            repetition=0.25,
            scores={"nice": 0.5},
        )
        for step in range(0, 500, 100)
        for prompt in "ab"
    ]
    entry = {
        "samples/length": 12.5,
        "samples/stopped": 0.75,
        "samples/repetition": 0.125,
        "samples/score/nice": -1.0,
    }
    page = run_with(tmp_path / "run", rows, [{"step": 100, **entry, "samples/kl_from_start": 0.25}])
    assert "What the policy wrote for the same prompts as training went on, 5 times; 4 of them" in page.text
    for prompt in "ab":
        assert f"prompt {prompt}" in page.text
        places = [page.text.index(f"text {prompt} at {step}") for step in (0, 100, 300, 400)]
        assert places == sorted(places)
        assert f"text {prompt} at 200" not in page.text
    assert page.text.count("no stop") == 2
    assert page.text.count("nice +0.50") == page.text.count("repetition 0.25") == 8
    for cell in ("12.5", "75%", "0.125", "+0.2500", "-1.000"):
        assert cell in page.text


def test_no_hostile_text_of_a_prompt_a_sample_or_a_scorer_gets_into_the_page(tmp_path: Path) -> None:
    def structure(name: str, texts: list[str]) -> list[Any]:
        rows = [
            {**row(0, str(number), text, scores={text: 1.0}), "prompt": text}
            for number, text in enumerate(texts)
        ]
        history = [{"step": 0, "samples/length": 1.0, f"samples/score/{text}": 1.0} for text in texts]
        page = run_with(tmp_path / name, rows, history)
        assert page.open == []
        return page.structure

    for start in range(0, len(HOSTILE), 20):
        hostile = HOSTILE[start : start + 20]
        harmless = [f"{HARMLESS}{number}" for number in range(len(hostile))]
        assert structure(f"hostile {start}", hostile) == structure(f"harmless {start}", harmless)
