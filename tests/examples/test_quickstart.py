"""The parts of the quickstart that need no model; the whole of it runs by ``make quickstart``."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from dynamic_dpo.cli.build_rollout import build_plan
from dynamic_dpo.config import get_training_config, load_yaml
from dynamic_dpo.eval.generate.batched import Generation
from places import ROOT

FOLDER = ROOT / "examples" / "sentiment"
SCRIPT = runpy.run_path(str(FOLDER / "quickstart.py"))


def review(text: str) -> Generation:
    return Generation([{"role": "user", "content": "A ramen bar?"}], 0, text, (1,), True, 3)


def test_the_settings_serve_both_commands_and_training_reads_the_rollouts_folder() -> None:
    config = get_training_config(load_yaml(FOLDER / "quickstart.yaml"))
    assert config.method.name == "risk"
    assert config.dpo_training.save_dir == "runs/quickstart"
    plan = build_plan(config)
    assert plan.prompts.load["name"] == "examples/sentiment/prompts.json"
    assert config.dataset.dataset_name == str(plan.folder) == "runs/quickstart-rollout"
    assert config.dataset.generated_data


def test_training_follows_the_rollout_to_another_folder() -> None:
    settings = SCRIPT["read_settings"](["rollout.output_dir=elsewhere", "rollout.limit=5"])
    assert settings["dataset"]["dataset_name"] == "elsewhere"
    assert settings["rollout"]["limit"] == 5
    assert Path(settings["rollout"]["prompts"]["name"]) == FOLDER / "prompts.json"


def test_no_held_out_prompt_is_sampled() -> None:
    sampled, heldout = (
        {prompt[0]["content"] for prompt in SCRIPT["read_prompts"](name)}
        for name in ("prompts.json", "prompts_heldout.json")
    )
    assert (len(sampled), len(heldout), sampled & heldout) == (315, 69, set())


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        ([], True),
        # Training again on the same pairs samples nothing anew.
        (["dpo_training.learning_rate=1e-5"], True),
        (["rollout.temperature=0.9"], False),
        (["rollout.pairs.min_gap=0.1"], False),
        (["policy_name=another/model"], False),
    ],
)
def test_a_rollout_is_gone_on_with_where_its_settings_are_the_same(
    tmp_path: Path, overrides: list[str], same: bool
) -> None:
    place = f"rollout.output_dir={tmp_path}"
    get_training_config(SCRIPT["read_settings"]([place])).save(tmp_path / "config.yaml")
    now = get_training_config(SCRIPT["read_settings"]([place, *overrides]))
    assert SCRIPT["holds_rollout_of"](now, tmp_path) is same
    assert not SCRIPT["holds_rollout_of"](now, tmp_path / "empty")


def test_vader_judges_each_review_against_the_one_before_and_a_tie_counts_half(tmp_path: Path) -> None:
    before = [review(text) for text in ("It was bad.", "It was good.", "A bowl.", "It was awful.")]
    after = [review(text) for text in ("It was good.", "It was bad.", "A cup.", "It was great.")]
    before, after = ([output._replace(prompt=[{"role": "user", "content": f"Bar {n}?"}])
                      for n, output in enumerate(side)] for side in (before, after))  # fmt: skip
    rate, page = SCRIPT["evaluate"](before, after, tmp_path)
    # Two wins, one tie, one loss of four: (2 + 1/2) / 4.
    assert rate.rate == 0.625
    assert (rate.counts.wins, rate.counts.ties, rate.counts.losses) == (2, 1, 1)
    assert 0 < rate.interval.low < 0.625 < rate.interval.high < 1
    figures = SCRIPT["key_figures"](before, after, rate, 1.234)
    low, high = rate.interval
    assert figures["Win rate against the start"] == f"62% [{low:.0%}, {high:.0%}] (2–1–1)"
    assert figures["KL to the start"] == "1.23 nats"
    assert "It was awful." in page.read_text(encoding="utf-8")


def test_samples_carry_both_texts_and_their_scores() -> None:
    [sample] = SCRIPT["side_by_side"]([review("It was awful.")], [review("It was great!")])
    assert (sample.prompt, sample.before, sample.after) == ("A ramen bar?", "It was awful.", "It was great!")
    assert sample.score_before < 0 < sample.score_after


def test_an_earlier_run_is_moved_aside_and_the_one_before_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "quickstart"
    for number in ("first", "second"):
        SCRIPT["move_aside"](run)
        run.mkdir()
        (run / number).touch()
    SCRIPT["move_aside"](run)
    assert not run.exists()
    assert [path.name for path in (tmp_path / "quickstart.old").iterdir()] == ["second"]
    assert str(tmp_path / "quickstart.old") in capsys.readouterr().out


def test_a_wrong_setting_ends_in_exit_code_2_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        SCRIPT["main"](
            [
                "risk_test.delta=2",
                f"dpo_training.save_dir={tmp_path / 'run'}",
                f"rollout.output_dir={tmp_path / 'rollout'}",
            ]
        )
        == 2
    )
    assert "risk_test.delta must lie in (0, 1), got 2" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
