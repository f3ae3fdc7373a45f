"""The stages of an evaluation: each does what is missing, and none goes on from what other settings made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import ConfigError, DataError, JudgeError
from dynamic_dpo.eval.collected import Evaluated, collect
from dynamic_dpo.eval.folder import EvaluationFolder
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.judges.base import Reply
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.judging.spending import Budget
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.notes import StageNotes
from dynamic_dpo.eval.pipeline import generate_all, judge_all, prepare
from dynamic_dpo.eval.plan import EvaluationPlan, JudgingSettings
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.eval.report.stage import report_data
from dynamic_dpo.eval.report.summary import summarise
from dynamic_dpo.eval.scoring.outputs import ScoringSettings
from tiny import tiny_llama, word_tokenizer


class LongerWins:
    """A judge that counts its questions and prefers the longer text, then the first."""

    name, max_attempts = "longer", 1

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "longer"}

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        self.asked.append((prompt.id, first, second))
        return Reply(Verdict.A if len(first) >= len(second) else Verdict.B, reason="it is longer")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("start", "trained", "third")):
        tiny_llama(seed=seed).save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("start", "trained", "third")}


@pytest.fixture
def judge() -> LongerWins:
    return LongerWins()


@pytest.fixture
def plan(models: dict[str, str], judge: LongerWins, tmp_path: Path) -> EvaluationPlan:
    rows = tmp_path / "prompts.json"
    rows.write_text(json.dumps([f"w{n} w{n + 1}" for n in range(9)]))
    return EvaluationPlan(
        folder=tmp_path / "out",
        prompts={"name": str(rows), "max_samples": 6, "seed": 1},
        models=[ModelSpec("start", models["start"]), ModelSpec("trained", models["trained"])],
        generation=GenerationSettings(max_new_tokens=4, seed=2, device="cpu"),
        judging=JudgingSettings(lambda: judge, {"kind": "longer"}),
        progress=False,
    )


def run(plan: EvaluationPlan) -> str | None:
    folder = EvaluationFolder(plan)
    prepare(folder, again=False)
    generate_all(folder)
    return judge_all(folder)


def collected(plan: EvaluationPlan) -> Evaluated:
    return collect(EvaluationFolder(plan))


def test_every_prompt_is_judged_in_both_orders_with_the_models_names_put_back(
    plan: EvaluationPlan, judge: LongerWins
) -> None:
    assert run(plan) is None
    done = collected(plan)
    assert (len(done.prompts), len(done.outputs), done.num_questions, done.num_unanswered) == (6, 12, 12, 0)
    assert {(record.first, record.second) for record in done.records} == {
        ("trained", "start"),
        ("start", "trained"),
    }
    texts = {(output.id, output.model): output.text for output in done.outputs}
    for record in done.records:
        first, second = texts[record.id, record.first], texts[record.id, record.second]
        assert record.verdict == ("tie" if first == second else "A" if len(first) >= len(second) else "B")
        assert "start" not in record.reason
    assert done.judge == "longer"
    assert len(judge.asked) == sum(record.reason == "it is longer" for record in done.records)
    assert done.prompts_report["drawn"] == 6
    assert done.provenance["start"]["seed"] == 2


def test_a_second_run_asks_nothing_loads_nothing_and_says_the_same(
    plan: EvaluationPlan, judge: LongerWins, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(plan)
    first, asked = collected(plan), len(judge.asked)
    files = {path.name: path.read_bytes() for path in plan.folder.iterdir()}
    monkeypatch.setattr("dynamic_dpo.eval.generate.stage.open_engine", None)
    run(plan)
    assert collected(plan) == first
    assert len(judge.asked) == asked
    assert {path.name: path.read_bytes() for path in plan.folder.iterdir()} == files


def test_another_model_is_added_without_asking_the_old_questions_again(
    plan: EvaluationPlan, judge: LongerWins, models: dict[str, str]
) -> None:
    run(plan)
    asked = set(judge.asked)
    wider = replace(plan, models=[*plan.models, ModelSpec("third", models["third"])], comparisons="all")
    assert wider.pairs == [("trained", "start"), ("third", "start"), ("trained", "third")]
    judge.asked.clear()
    run(wider)
    assert not asked & set(judge.asked)
    done = collected(wider)
    assert done.num_questions == 36
    assert done.num_unanswered == 0


def test_the_baseline_stands_second_where_one_fixed_order_is_asked(plan: EvaluationPlan) -> None:
    once = replace(
        plan, judging=replace(plan.judging, both_orders=False, randomize_order=False), baseline="trained"
    )
    run(once)
    assert {(r.first, r.second) for r in collected(once).records} == {("start", "trained")}
    drawn = replace(once, judging=replace(once.judging, randomize_order=True))
    run(drawn)
    orders = [(r.first, r.second) for r in collected(drawn).records]
    assert len(orders) == 6
    assert len(set(orders)) == 2


def test_a_budget_stops_cleanly_and_more_of_it_goes_on(plan: EvaluationPlan, judge: LongerWins) -> None:
    poor = replace(plan, judging=replace(plan.judging, budget=Budget(calls=5), concurrency=1))
    stopped = run(poor)
    assert stopped == "budget of 5 calls: 5 made"
    done = collected(poor)
    assert len(judge.asked) == 5
    assert (done.stopped, done.num_unanswered) == (stopped, 12 - len(done.records))
    rich = replace(plan, judging=replace(plan.judging, budget=Budget(calls=50)))
    assert run(rich) is None
    assert len(judge.asked) == len(set(judge.asked))
    assert collected(rich).num_unanswered == 0
    assert collected(rich).stopped is None


def test_a_judge_that_fails_leaves_its_answers_and_the_report_can_be_collected(plan: EvaluationPlan) -> None:
    class Breaks(LongerWins):
        def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
            if len(self.asked) == 3:
                raise JudgeError("the server is gone")
            return super().ask(prompt, first, second, attempt=attempt)

    broken = Breaks()
    once = replace(plan, judging=JudgingSettings(lambda: broken, {"kind": "longer"}, concurrency=1))
    with pytest.raises(JudgeError, match="the server is gone"):
        run(once)
    done = collected(once)
    assert sum(record.reason == "it is longer" for record in done.records) == 3
    assert done.num_unanswered == 12 - len(done.records) > 0
    assert f"{done.num_unanswered} of 12 questions have no answer" in report_data(once, done).notes[0]


def test_stages_say_what_must_run_before_them(plan: EvaluationPlan) -> None:
    for stage, name in ((generate_all, "prepare"), (judge_all, "prepare")):
        with pytest.raises(ConfigError, match=f"nothing of the stage {name} yet"):
            stage(EvaluationFolder(plan))
    folder = EvaluationFolder(plan)
    prepare(folder)
    with pytest.raises(ConfigError, match="nothing of the stage generate yet"):
        judge_all(folder)
    generate_all(folder)
    with pytest.raises(ConfigError, match="nothing of the stage judge yet"):
        collect(folder)


def test_a_stage_keeps_the_notes_that_another_process_left_meanwhile(plan: EvaluationPlan) -> None:
    here, elsewhere = EvaluationFolder(plan), EvaluationFolder(plan)
    prepare(here)
    generate_all(here)
    prepare(elsewhere)
    assert judge_all(EvaluationFolder(plan)) is None
    assert elsewhere.created == here.created


CHANGES: dict[str, Any] = {
    "dataset": lambda plan: replace(plan, prompts={**plan.prompts, "seed": 5}),
    "generation": lambda plan: replace(plan, generation=replace(plan.generation, max_new_tokens=3)),
    r"models\.trained": lambda plan: replace(
        plan, models=[plan.models[0], replace(plan.models[1], prompt_template="w1 {prompt}")]
    ),
    "judge": lambda plan: replace(plan, judging=replace(plan.judging, identity={"kind": "shorter"})),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_stage_alone_refuses_what_other_settings_made(plan: EvaluationPlan, key: str) -> None:
    run(plan)
    with pytest.raises(ConfigError, match=f"{key}.* changed since the stage"):
        collected(CHANGES[key](plan))
    faster = replace(plan, generation=replace(plan.generation, batch_size=2))
    assert collected(faster) == collected(plan)


def test_other_prompts_get_outputs_of_their_own_and_old_answers_are_not_attached(
    plan: EvaluationPlan,
) -> None:
    run(plan)
    before = collected(plan)
    other = replace(plan, prompts={**plan.prompts, "seed": 7, "max_samples": 5})
    run(other)
    after = collected(other)
    ids = {prompt.id for prompt in after.prompts}
    assert {output.id for output in after.outputs} == ids
    assert {record.id for record in after.records} == ids
    shared = [output for output in before.outputs if output.id in ids]
    assert all(output in after.outputs for output in shared)


def test_prompts_that_a_model_cannot_be_asked_are_no_fault_of_the_comparison(
    plan: EvaluationPlan, models: dict[str, str], tmp_path: Path
) -> None:
    from tiny import tiny_gpt2

    tiny_gpt2().save_pretrained(tmp_path / "short")  # holds 128 tokens
    word_tokenizer().save_pretrained(tmp_path / "short")
    (tmp_path / "rows.json").write_text(json.dumps(["w1 w2", "w3 w4", "w5 " * 200]))
    mixed = replace(
        plan,
        prompts={"name": str(tmp_path / "rows.json")},
        models=[plan.models[0], ModelSpec("short", str(tmp_path / "short"))],
    )
    run(mixed)
    done = collected(mixed)
    assert (len(done.prompts), len(done.outputs), done.num_questions) == (3, 5, 4)
    assert list(done.left_out) == ["short"]
    assert done.num_missing_outputs == 1
    [note] = report_data(mixed, done).notes
    assert note.startswith("short could not be asked 1 of 3 prompts")
    assert "leave no room for 4 of the 128" in note


def test_equal_outputs_are_ties_without_a_question_and_bad_rows_are_counted(
    plan: EvaluationPlan, judge: LongerWins, models: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('"w1 w2"\n"w3"\n{"prompt": 7}\n')
    twins = replace(
        plan,
        prompts={"name": str(tmp_path / "rows.jsonl"), "quarantine_max_share": 0.5},
        models=[plan.models[0], ModelSpec("twin", models["start"])],
    )
    run(twins)
    assert not judge.asked
    identical, quarantined = report_data(twins, collected(twins)).notes
    assert identical.startswith("4 of 4 questions are ties because both outputs are the same text")
    assert quarantined == "1 of 3 rows gave no prompt: not_text 1."


def test_lost_outputs_are_noticed(plan: EvaluationPlan) -> None:
    run(plan)
    path = plan.folder / "generations.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"1 outputs are missing.*run the stage generate again"):
        judge_all(EvaluationFolder(plan))
    generate_all(EvaluationFolder(plan))
    assert judge_all(EvaluationFolder(plan)) is None


def test_several_samples_are_compared_one_by_one(plan: EvaluationPlan) -> None:
    twice = replace(plan, generation=replace(plan.generation, num_samples=2))
    run(twice)
    done = collected(twice)
    assert done.num_questions == 6 * 2 * 2
    assert {record.sample for record in done.records} == {0, 1}


def test_a_plan_that_compares_nothing_is_refused(plan: EvaluationPlan) -> None:
    with pytest.raises(ConfigError, match="at least two models to compare, got start"):
        replace(plan, models=plan.models[:1])
    with pytest.raises(ConfigError, match=r"baseline must be one of models \(start, trained\), got 'other'"):
        replace(plan, baseline="other")


def test_a_manifest_of_something_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(DataError, match="no manifest of this version"):
        StageNotes(tmp_path)


# ---- scores beside the outputs ----


def scored(plan: EvaluationPlan, models: dict[str, str], tmp_path: Path, **generation: Any) -> EvaluationPlan:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"w{n}", "chosen": f" w{n + 1}", "rejected": f" w{n + 2}"} for n in range(4)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return replace(
        plan,
        generation=replace(plan.generation, **generation),
        scoring=ScoringSettings(models["start"], str(pairs), beta=0.5, device="cpu"),
    )


def test_drift_and_implicit_rewards_are_measured_once_and_stand_in_the_report(
    plan: EvaluationPlan, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = scored(plan, models, tmp_path, temperature=1.0, top_p=1.0)
    run(wide)
    done = collected(wide)
    start, trained = done.scores["start"], done.scores["trained"]
    # The start is its own reference: no drift, no margins.
    assert start.policy_logps == pytest.approx(start.reference_logps, abs=1e-6)
    assert start.margins == [0.0] * 4
    assert len(trained.policy_logps) == 6
    data = report_data(wide, done)
    [origin, moved] = data.frontier
    assert (origin.name, origin.kl, origin.reward) == ("start", pytest.approx(0, abs=1e-6), 0.5)
    # Samples of the trained model are likelier under it than under another model.
    assert moved.kl == pytest.approx(
        sum(p - r for p, r in zip(trained.policy_logps, trained.reference_logps, strict=True)) / 6
    )
    assert moved.kl > 0
    assert data.preference["trained"].reward_margin == pytest.approx(0.5 * sum(trained.margins) / 4)
    monkeypatch.setattr("dynamic_dpo.eval.scoring.logps.open_model", None)
    run(wide)
    assert collected(wide) == done


def test_a_samples_log_probability_is_that_of_its_own_tokens(
    plan: EvaluationPlan, models: dict[str, str], tmp_path: Path
) -> None:
    import torch

    wide = scored(plan, models, tmp_path, temperature=1.0, top_p=1.0)
    run(wide)
    done = collected(wide)
    lines = [json.loads(line) for line in (plan.folder / "generations.jsonl").read_text().splitlines()]
    by_id = {line["id"]: line for line in lines if line["model"] == "trained"}
    model = tiny_llama(seed=1).eval()
    for prompt, logp in zip(done.prompts, done.scores["trained"].policy_logps, strict=True):
        line = by_id[prompt.id]
        # No chat template: the HH transcript is what the model reads.
        ids = word_tokenizer()(f"\n\nHuman: {prompt.messages[0]['content']}\n\nAssistant:")["input_ids"]
        answer = [*line["token_ids"], *([2] if line["finished"] else [])]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
        expected = sum(logprobs[len(ids) - 1 + k, token].item() for k, token in enumerate(answer))
        assert logp == pytest.approx(expected, abs=1e-4)


def test_no_kl_is_claimed_for_outputs_that_are_no_samples_of_the_model(
    plan: EvaluationPlan, models: dict[str, str], tmp_path: Path
) -> None:
    narrow = scored(plan, models, tmp_path)
    run(narrow)
    data = report_data(narrow, collected(narrow))
    assert not data.frontier
    assert any("KL to the reference is left out" in note for note in data.notes)
    assert data.preference["trained"].num_pairs == 4
    with pytest.raises(ConfigError, match="scoring changed since the stage generate"):
        collected(replace(narrow, scoring=ScoringSettings(models["trained"], device="cpu")))


# Several judges


class ShorterWins(LongerWins):
    name = "shorter"

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "shorter"}

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        return super().ask(prompt, second, first, attempt=attempt)


def test_several_judges_answer_the_same_questions_into_one_file(
    plan: EvaluationPlan, judge: LongerWins
) -> None:
    other = ShorterWins()
    both = replace(plan, further_judges={"second": JudgingSettings(lambda: other, {"kind": "shorter"})})
    assert run(plan) is None
    asked = len(judge.asked)
    assert run(both) is None
    # The first judge's answers are found again, and the second was asked the same.
    assert len(judge.asked) == asked == len(other.asked)
    done = collected(both)
    assert (done.num_questions, done.num_unanswered) == (24, 0)
    assert {(r.judge, r.id, r.first) for r in done.records if r.judge == "second"} == {
        ("second", r.id, r.first) for r in done.records if r.judge == "longer"
    }
    summary = summarise(report_data(both, done))
    assert [found.name for found in summary.judges] == ["longer", "second"]
    (agreement,) = summary.agreement
    assert agreement.judges == ("longer", "second")
    assert agreement.num_questions == 6
    assert {"judge", "judge second"} <= set(report_data(both, done).provenance)
    # The plan with the first judge alone reports what it did before.
    assert {record.judge for record in collected(plan).records} == {"longer"}


def test_two_judges_need_two_names_and_two_natures(plan: EvaluationPlan, judge: LongerWins) -> None:
    again = JudgingSettings(lambda: judge, {"kind": "longer"})
    shorter = JudgingSettings(ShorterWins, {"kind": "shorter"})
    for further, message in (
        ({"longer": shorter}, "has the name of the first"),
        ({"x": again}, "is the same"),
    ):
        wrong = replace(plan, further_judges=further)
        with pytest.raises(ConfigError, match=message):
            run(wrong)
    assert run(plan) is None
    with pytest.raises(ConfigError, match=r"nothing of the stage judge yet .judges\.new."):
        collected(replace(plan, further_judges={"new": shorter}))
