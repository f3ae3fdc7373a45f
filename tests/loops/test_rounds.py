"""Two rounds of rollout, training and evaluation of a tiny model: what is carried, mixed, resumed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dynamic_dpo.config import load_yaml
from dynamic_dpo.errors import ConfigError, DataError, StageError
from dynamic_dpo.eval.statistics.resampling import Interval
from dynamic_dpo.loops.figures import RoundFigures
from dynamic_dpo.loops.manifest import Manifest
from dynamic_dpo.loops.plan import LoopPlan, Stage
from dynamic_dpo.loops.rounds import LoopResult, reason_to_stop, run_loop
from dynamic_dpo.utils.signals import Interrupted
from helpers_loops import in_this_process, loop_settings, plan_of, save_model
from helpers_rollouts import rows_of, write_prompts


class Whole:
    """A loop of two rounds that nobody has disturbed."""

    def __init__(self, folder: Path, model: str) -> None:
        self.settings = loop_settings(folder, model, earlier_pairs=0.5)
        self.plan: LoopPlan = plan_of(self.settings)
        self.result: LoopResult = run_loop(self.plan)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: str) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), model)


def never(stage: Stage) -> int:
    raise AssertionError(f"{stage.title} was run")


def prompts_of(folder: Path) -> set[str]:
    return {row["id"] for row in rows_of(folder / "rollout" / "prompts.jsonl")}


def results_of(folder: Path) -> dict[str, bytes]:
    """Return all that must not hang on where a loop was interrupted."""
    names = (
        "pairs.jsonl",
        "outputs.jsonl",
        "scores.jsonl",
        "prompts.jsonl",
        "generations.jsonl",
        "model.safetensors",
    )
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in names and "checkpoint-" not in str(path)
    }


# ---- what comes out ----


def test_every_round_begins_with_the_model_of_the_one_before(whole: Whole, model: str) -> None:
    folder = whole.plan.folder
    first, second = (load_yaml(folder / f"round-{n}" / "rollout.yaml") for n in (1, 2))
    assert first["policy_name"] == model
    assert second["policy_name"] == str(folder / "round-1" / "train")
    assert whole.result.model == folder / "round-2" / "train"
    weights = [(folder / f"round-{n}" / "train" / "model.safetensors").read_bytes() for n in (1, 2)]
    assert weights[0] != weights[1]


def test_rounds_share_no_prompt_with_each_other_or_with_the_evaluation(whole: Whole) -> None:
    first, second = (prompts_of(whole.plan.folder_of(number)) for number in (1, 2))
    assert (len(first), len(second), first & second) == (4, 4, set())
    judged = {row["id"] for row in rows_of(whole.plan.folder_of(2) / "evaluation" / "prompts.jsonl")}
    assert len(judged) == 6
    assert not judged & (first | second)


def test_prompts_of_the_evaluation_are_not_sampled_where_the_sets_overlap(tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model, rounds=1)
    same = write_prompts(tmp_path / "held-out.jsonl", [f"w{n} w{n + 1}" for n in range(7)])
    settings["evaluation"]["dataset"] = {"name": str(same), "split": "train", "max_samples": 5}
    settings["rollout"] |= {"limit": None}
    settings["iterate"] |= {"fresh_prompts": False}
    plan = plan_of(settings)
    run_loop(plan)
    judged = {row["id"] for row in rows_of(plan.folder_of(1) / "evaluation" / "prompts.jsonl")}
    sampled = prompts_of(plan.folder_of(1))
    assert (len(judged), len(sampled), judged & sampled) == (5, 7, set())


def test_beta_is_carried_on_and_the_reference_stays_the_first_model(whole: Whole, model: str) -> None:
    folder = whole.plan.folder
    first, second = (load_yaml(folder / f"round-{n}" / "train.yaml") for n in (1, 2))
    left = json.loads((folder / "round-1" / "train" / "run_summary.json").read_text())["beta_final"]
    assert first["beta_update"]["beta_0"] == 0.1 != left
    assert second["beta_update"]["beta_0"] == left
    assert (first["ref_name"], second["ref_name"]) == (None, model)
    begun = rows_of(folder / "round-2" / "train" / "logs" / "margins" / "controller.jsonl")[0]
    assert begun["beta"] == pytest.approx(left, rel=0.2)
    # Against the first model the margins are those of a trained one from the first batch on.
    margins = [
        rows_of(folder / f"round-{n}" / "train" / "logs" / "margins" / "margins.jsonl")[0] for n in (1, 2)
    ]
    assert margins[0]["mean"] == 0 != margins[1]["mean"]


def test_pairs_of_earlier_rounds_are_mixed_in(whole: Whole) -> None:
    first, second = (rows_of(whole.plan.folder_of(number) / "rollout" / "pairs.jsonl") for number in (1, 2))
    mixed = rows_of(whole.plan.folder_of(2) / "pairs.jsonl")
    assert mixed[: len(second)] == second
    drawn = mixed[len(second) :]
    assert len(drawn) == round(0.5 * len(second)) >= 1
    assert all(row in first for row in drawn)
    assert whole.result.rounds[1].trained_pairs == len(mixed)
    summary = json.loads((whole.plan.folder_of(2) / "train" / "run_summary.json").read_text())
    assert summary["pairs_seen"] == len(mixed)


def test_outputs_of_the_model_before_are_not_written_again(whole: Whole) -> None:
    first, second = (
        rows_of(whole.plan.folder_of(number) / "evaluation" / "generations.jsonl") for number in (1, 2)
    )
    assert [row["model"] for row in second] == ["round-1"] * 6 + ["round-2"] * 6
    assert second[:6] == [row for row in first if row["model"] == "round-1"]


def test_figures_are_those_of_the_stages_and_the_page_shows_them(whole: Whole) -> None:
    summary = json.loads((whole.plan.folder / "summary.json").read_text())
    assert [one["round"] for one in summary["rounds"]] == [1, 2]
    page = whole.result.page.read_text()
    for number, figures in enumerate(summary["rounds"], start=1):
        folder = whole.plan.folder_of(number)
        evaluation = json.loads((folder / "evaluation" / "summary.json").read_text())
        overall = evaluation["pairs"][0]["overall"]
        assert (overall["model"], overall["baseline"]) == (
            f"round-{number}",
            ["initial", "round-1"][number - 1],
        )
        assert figures["win_rate"] == overall["rate"]
        assert figures["win_rate_interval"] == overall["interval"]
        assert figures["pairs"] == len(rows_of(folder / "rollout" / "pairs.jsonl"))
        assert figures["kl"] == next(
            point["kl"] for point in evaluation["frontier"] if point["name"] == f"round-{number}"
        )
        assert set(figures["seconds"]) == {"rollout", "train", "evaluate"}
        for shown in (
            f"{100 * figures['win_rate']:.1f} %",
            f"{figures['kl']:.4g} nats",
            f"{figures['score']:.4g}",
        ):
            assert shown in page
        for where in ("rollout", "evaluation"):
            assert f'href="round-{number}/{where}/report.html"' in page
            assert (folder / where / "report.html").is_file()


@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_an_adapter_is_gone_on_with_over_the_same_base(tmp_path: Path, model: str, reference: str) -> None:
    settings = loop_settings(tmp_path, model, reference=reference)
    settings["peft"] = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    settings["dpo_training"]["learning_rate"] = 1e-2
    plan = plan_of(settings)
    run_loop(plan)
    first, second = (plan.folder_of(number) / "train" for number in (1, 2))
    assert not list(plan.folder.rglob("model.safetensors"))
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    config = json.loads((second / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (2, model)
    # Against the adapter as it was the first margins are 0; against the base they are the first round's.
    margins = rows_of(second / "logs" / "margins" / "margins.jsonl")[0]
    assert (margins["mean"] == 0) is (reference == "previous")


# ---- going on ----


def test_a_loop_that_is_done_runs_nothing_again(whole: Whole) -> None:
    before = results_of(whole.plan.folder)
    again = run_loop(plan_of(whole.settings, never))
    assert again.rounds == whole.result.rounds
    assert results_of(whole.plan.folder) == before


def test_a_loop_stopped_before_or_after_any_stage_ends_with_the_same_files(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pairs say which model has made them: both loops have one path.
    settings = loop_settings(tmp_path, model, earlier_pairs=0.5, output_dir="loop")
    stops = iter([False, True] * 6)

    def run(stage: Stage) -> int:
        stop_after = next(stops, None)
        if stop_after is False:
            raise Interrupted(15)
        code = in_this_process(stage)
        if stop_after:
            raise Interrupted(15)
        return code

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    run_loop(plan_of(settings))
    monkeypatch.chdir(tmp_path / "stopped")
    interruptions = 0
    while True:
        try:
            run_loop(plan_of(settings, run))
            break
        except Interrupted:
            interruptions += 1
    assert interruptions == 12
    ours, theirs = results_of(tmp_path / "stopped"), results_of(tmp_path / "whole")
    assert len(theirs) == 15
    assert ours.keys() == theirs.keys()
    for name, content in theirs.items():
        assert ours[name] == content, name


def test_a_training_without_a_checkpoint_is_begun_anew(whole: Whole, tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model, rounds=1)
    settings["dpo_training"] |= {"save_steps": None, "save_strategy": "no"}

    def run(stage: Stage) -> int:
        code = in_this_process(stage)
        # As if it was killed behind the last file of the model, before it was noted.
        if stage.name == "train" and not list(tmp_path.glob("second")):
            (tmp_path / "second").touch()
            raise Interrupted(9)
        return code

    with pytest.raises(Interrupted):
        run_loop(plan_of(settings, run))
    run_loop(plan_of(settings, run))
    name = Path("round-1") / "train" / "model.safetensors"
    assert (tmp_path / "loop" / name).read_bytes() == (whole.plan.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("rollout", "temperature", 0.5, r"round 1: rollout .* rollout.temperature was 1.0, is 0.5"),
        (
            "dpo_training",
            "learning_rate",
            1e-4,
            r"round 1: rollout .* dpo_training.learning_rate was 0.001, is 0.0001",
        ),
    ],
)
def test_a_changed_setting_of_a_round_that_is_done_is_refused(
    whole: Whole, section: str, key: str, value: object, said: str
) -> None:
    settings = {**whole.settings, section: {**whole.settings[section], key: value}}
    with pytest.raises(ConfigError, match=said):
        run_loop(plan_of(settings, never))


def test_a_setting_that_a_later_version_has_besides_is_no_change(tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model, rounds=1)
    run_loop(plan_of(settings))
    path = tmp_path / "loop" / "round-1" / "manifest.json"
    noted = json.loads(path.read_text())
    for name in ("rollout", "train"):
        del (
            noted["stages"][name]["settings"]["rollout"]["top_p"],
            noted["stages"][name]["settings"]["monitor"],
        )
    path.write_text(json.dumps(noted))
    assert len(run_loop(plan_of(settings, never)).rounds) == 1
    settings["rollout"]["top_p"] = 0.9
    with pytest.raises(ConfigError, match=r"rollout\.top_p was 1\.0, is 0\.9"):
        run_loop(plan_of(settings, never))


def test_more_rounds_may_be_asked_for_later(whole: Whole, tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model, rounds=1)
    run_loop(plan_of(settings))
    settings["iterate"]["rounds"] = 2
    asked: list[str] = []

    def run(stage: Stage) -> int:
        asked.append(stage.title)
        return in_this_process(stage)

    assert len(run_loop(plan_of(settings, run)).rounds) == 2
    assert asked == ["round 2: rollout", "round 2: train", "round 2: evaluate"]


def copied(whole: Whole, folder: Path, model: str) -> dict[str, Any]:
    """Return the settings of a loop whose first round is done."""
    settings = loop_settings(folder, model, rounds=1)
    run_loop(plan_of(settings))
    return settings


def test_damage_to_what_a_stage_left_is_named(whole: Whole, tmp_path: Path, model: str) -> None:
    settings = copied(whole, tmp_path, model)
    path = tmp_path / "loop" / "round-1" / "rollout" / "pairs.jsonl"
    path.write_text(path.read_text().replace("w1", "w2"))
    with pytest.raises(DataError, match=r"round 1: rollout: pairs\.jsonl in .* is not what it left"):
        run_loop(plan_of(settings, never))


def test_a_round_that_stands_on_another_model_than_there_is_now_is_named(tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model)
    run_loop(plan_of(settings))
    shutil.rmtree(tmp_path / "loop" / "round-1")
    settings["dpo_training"]["learning_rate"] = 2e-3
    with pytest.raises(
        ConfigError, match=r"round 2: rollout .* dpo_training.learning_rate was 0.001, is 0.002"
    ):
        run_loop(plan_of(settings))
    manifest = tmp_path / "loop" / "round-2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"learning_rate": 0.001', '"learning_rate": 0.002'))
    with pytest.raises(
        DataError, match=r"round 2: rollout in .* was made from other files than there are now"
    ):
        run_loop(plan_of(settings))


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is no manifest of this version"):
        Manifest(tmp_path)


def test_two_loops_do_not_work_in_one_folder(tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model)

    def run(stage: Stage) -> int:
        with pytest.raises(ConfigError, match="another process works in"):
            run_loop(plan_of(settings, never))
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        run_loop(plan_of(settings, run))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (2, "round 1: rollout ended with exit code 2, and its message stands above"),
        (-9, "round 1: rollout was ended by SIGKILL"),
    ],
)
def test_a_stage_that_fails_ends_the_loop_in_a_sentence(
    tmp_path: Path, model: str, code: int, said: str
) -> None:
    with pytest.raises(StageError, match=said):
        run_loop(plan_of(loop_settings(tmp_path, model), lambda stage: code))


def test_a_round_without_pairs_ends_the_loop_with_the_place_of_the_reasons(
    tmp_path: Path, model: str
) -> None:
    settings = loop_settings(tmp_path, model)
    settings["rollout"]["pairs"] = {"min_gap": 1000}
    with pytest.raises(StageError, match=r"round 1 made no pairs: .*report\.html says what was left out"):
        run_loop(plan_of(settings))


# ---- when it is enough ----


def figures(low: float, high: float, kl: float | None = None) -> RoundFigures:
    interval = Interval(low, high)
    return RoundFigures(1, 9, 9, 0.1, 0.2, (low + high) / 2, interval, kl, 5.0, 5.0, 0.0, 0.1, 0.2, {})


@pytest.mark.parametrize(
    ("iterate", "last", "said"),
    [
        ({"stop_when_even": True}, figures(0.51, 0.7), None),
        ({"stop_when_even": True}, figures(0.5, 0.7), "its win rate against the model before it, 60.0%"),
        ({"stop_when_even": True}, figures(0.3, 0.4), "is not clearly above 50 %"),
        ({"stop_when_even": True}, figures(float("nan"), float("nan")), "is not clearly above 50 %"),
        ({"stop_when_even": False}, figures(0.3, 0.4), None),
        ({"kl_budget": 2.0}, figures(0.51, 0.7, 1.9), None),
        ({"kl_budget": 2.0}, figures(0.51, 0.7, 2.0), "2.00 nats per answer away from the first one"),
    ],
)
def test_a_loop_ends_where_it_gains_nothing_or_has_gone_too_far(
    tmp_path: Path, model: str, iterate: dict[str, Any], last: RoundFigures, said: str | None
) -> None:
    found = reason_to_stop(plan_of(loop_settings(tmp_path, model, **iterate)), last)
    assert found is None if said is None else said in str(found)


def test_the_reason_for_an_early_end_stands_in_summary_and_page(tmp_path: Path, model: str) -> None:
    settings = loop_settings(tmp_path, model, kl_budget=1e-6)
    result = run_loop(plan_of(settings))
    assert len(result.rounds) == 1
    assert "and the budget is 1e-06" in str(result.stopped)
    assert json.loads((tmp_path / "loop" / "summary.json").read_text())["stopped"] == result.stopped
    assert "Stopped after round 1: its model is" in result.page.read_text()
