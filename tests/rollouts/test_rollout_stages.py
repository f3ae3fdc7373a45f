"""A rollout from prompts to pairs: what is written, what is never mixed, and what no shard or order may change."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.folder import RolloutFolder
from dynamic_dpo.rollouts.merge import merge_shards
from dynamic_dpo.rollouts.plan import PromptSource, RolloutPlan, Scoring, Shard
from dynamic_dpo.rollouts.settings import AnswerFilters, PairingSettings
from dynamic_dpo.rollouts.stages import run_rollout, run_stages
from helpers_rollouts import ANSWERS, files_of, plan_of, rows_of, scoring, write_prompts
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ 'w90 ' if m['role'] == 'user' else 'w91 ' }}{{ m['content'] }}"
    "{{ ' </s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}w91{% endif %}"
)


def word_score(text: str) -> float:
    return sum(map(len, text.split())) % 7 + text.count("1") / 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(seed=3).save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def sampling(model: str, tmp_path: Path) -> RolloutPlan:
    """A plan by which a tiny model writes; most of its answers are cut off."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", [f"w{n} w{2 * n}" for n in range(6)])
    return RolloutPlan(
        folder=tmp_path / "out",
        prompts=PromptSource({"name": str(prompts), "split": "train"}),
        policy=ModelSpec("policy", model),
        generation=GenerationSettings(
            max_new_tokens=8, min_new_tokens=1, temperature=1.0, top_p=1.0, num_samples=3, device="cpu"
        ),
        labels=Scoring({"words": scoring(f"{__name__}:word_score")}),
        filters=AnswerFilters(truncated=False),
        progress=False,
    )


def pairs_in(folder: Path) -> list[dict[str, Any]]:
    return rows_of(folder / "pairs.jsonl")


# ---- what is written ----


def test_pairs_say_all_that_they_were_made_of(sampling: RolloutPlan) -> None:
    result = run_rollout(sampling)
    assert list(result.seconds) == ["prepare", "sample", "label", "pair"]
    written = {(row["id"], row["sample"]): row for row in rows_of(sampling.folder / "outputs.jsonl")}
    pairs = pairs_in(sampling.folder)
    assert result.summary["pairs"] == len(pairs) > 0
    for pair in pairs:
        about = pair["metadata"]
        assert about["prompt_id"] == PromptRecord.of(pair["prompt_messages"]).id
        assert (about["rule"], about["seed"], about["judge"]) == ("best_worst", 42, "words")
        for side in ("chosen", "rejected"):
            output = written[about["prompt_id"], about[side]["sample"]]
            assert pair[side] == output["text"]
            assert pair[f"{side}_ids"] == output["token_ids"] + [2] * output["finished"]
            assert about[side]["finish_reason"] == ("stop" if output["finished"] else "length")
            assert about[side]["scores"] == {"words": word_score(pair[side])}
            assert about[side]["model"] == sampling.policy.path
        assert about["gap"] == about["chosen"]["score"] - about["rejected"]["score"] > 0
    assert {row["id"] for row in rows_of(sampling.folder / "prompts.jsonl")} >= {
        pair["metadata"]["prompt_id"] for pair in pairs
    }


def test_an_answer_that_was_cut_off_is_in_no_pair_unless_asked_for(sampling: RolloutPlan) -> None:
    run_rollout(sampling)
    cut = {row["text"] for row in rows_of(sampling.folder / "outputs.jsonl") if not row["finished"]}
    assert cut & {pair["chosen"] for pair in pairs_in(sampling.folder)}
    run_rollout(replace(sampling, filters=AnswerFilters()))
    assert not cut & {pair[side] for pair in pairs_in(sampling.folder) for side in ("chosen", "rejected")}
    reasons = [row["reason"] for row in rows_of(sampling.folder / "dropped.jsonl")]
    assert reasons.count("truncated") == sum(
        not row["finished"] for row in rows_of(sampling.folder / "outputs.jsonl")
    )


def test_nothing_is_lost_between_answers_and_pairs(tmp_path: Path) -> None:
    answers = dict(ANSWERS) | {"question 2": ["4 same"] * 4, "question 5": ["", " ", "3 alone", ""]}
    result = run_rollout(plan_of(tmp_path / "out", answers))
    dropped = rows_of(tmp_path / "out" / "dropped.jsonl")
    by_reason: dict[str, int] = {}
    for row in dropped:
        by_reason[row["reason"]] = by_reason.get(row["reason"], 0) + 1
    assert result.summary["dropped"] == by_reason
    assert by_reason["identical"] == 3
    assert by_reason["empty"] == 3
    assert result.summary["answers"] == sum(map(len, answers.values()))
    # Each prompt has a pair, or a line that says why not.
    with_pairs = {pair["metadata"]["prompt_id"] for pair in pairs_in(tmp_path / "out")}
    without = {row["id"] for row in dropped} - with_pairs
    assert with_pairs | without == {row["id"] for row in rows_of(tmp_path / "out" / "prompts.jsonl")}
    assert result.summary["prompts_with_pairs"] == len(with_pairs)


def test_a_second_run_writes_the_same_files_and_loads_no_model(
    sampling: RolloutPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_rollout(sampling)
    before = files_of(sampling.folder)
    monkeypatch.setattr("dynamic_dpo.eval.generate.stage.open_engine", None)
    run_rollout(sampling)
    assert files_of(sampling.folder) == before


def test_more_answers_or_prompts_are_added_to_what_is_there(sampling: RolloutPlan) -> None:
    few = replace(sampling, prompts=replace(sampling.prompts, limit=3))
    run_rollout(few)
    first = rows_of(sampling.folder / "outputs.jsonl")
    run_rollout(replace(sampling, generation=replace(sampling.generation, num_samples=4)))
    rows = rows_of(sampling.folder / "outputs.jsonl")
    assert rows[: len(first)] == first
    assert len({(row["id"], row["sample"]) for row in rows}) == len(rows) == 6 * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 0.7}, r"policy\.temperature was 1\.0, is 0\.7"),
        ({"seed": 7}, r"policy\.seed was 42, is 7"),
        ({"min_new_tokens": 2}, r"policy\.min_new_tokens was 1, is 2"),
    ],
)
def test_changed_sampling_is_refused_with_the_difference(
    sampling: RolloutPlan, change: dict[str, Any], said: str
) -> None:
    run_stages(RolloutFolder(sampling), ["prepare", "sample"])
    before = files_of(sampling.folder)
    with pytest.raises(ConfigError, match=said):
        run_rollout(replace(sampling, generation=replace(sampling.generation, **change)))
    assert files_of(sampling.folder) == before


def test_a_changed_model_template_prompt_set_or_shard_is_refused(
    sampling: RolloutPlan, tmp_path: Path
) -> None:
    run_stages(RolloutFolder(sampling), ["prepare"])
    other = tmp_path / "other"
    tiny_llama(seed=4).save_pretrained(other)
    word_tokenizer(template=TEMPLATE).save_pretrained(other)
    same = tmp_path / "moved"
    tiny_llama(seed=3).save_pretrained(same)
    word_tokenizer(template=TEMPLATE).save_pretrained(same)
    changed_template = tmp_path / "template"
    tiny_llama(seed=3).save_pretrained(changed_template)
    word_tokenizer(template=TEMPLATE.replace("w90", "w80")).save_pretrained(changed_template)
    source = sampling.prompts
    for plan, said in (
        (replace(sampling, policy=ModelSpec("policy", str(other))), r"policy\.files_sha256 was"),
        (replace(sampling, policy=ModelSpec("policy", str(changed_template))), r"policy\.files_sha256 was"),
        (
            replace(sampling, policy=replace(sampling.policy, prompt_template="w5 {prompt}")),
            r"policy\.prompt_template was None, is 'w5 \{prompt\}'",
        ),
        (replace(sampling, shard=Shard(1, 2)), r"prompts\.shard was None, is '1/2'"),
        (
            replace(sampling, prompts=replace(source, load={**source.load, "seed": 9})),
            r"prompts\.load\.seed was None, is 9",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            RolloutFolder(plan)
    # The same files elsewhere are the same model.
    RolloutFolder(replace(sampling, policy=ModelSpec("policy", str(same))))


def test_a_stage_that_runs_alone_says_what_it_lacks(sampling: RolloutPlan) -> None:
    folder = RolloutFolder(sampling)
    with pytest.raises(ConfigError, match="nothing of the stage prepare yet"):
        run_stages(folder, ["sample"])
    run_stages(folder, ["prepare"])
    with pytest.raises(DataError, match="answers to 6 of 6 prompts are missing"):
        run_stages(folder, ["pair"])
    run_stages(folder, ["sample"])
    with pytest.raises(ConfigError, match="nothing of the stage label yet"):
        run_stages(folder, ["pair"])


def test_two_models_make_pairs_without_labels(tmp_path: Path) -> None:
    weak = {prompt: [f"weak {text}" for text in texts] for prompt, texts in ANSWERS.items()}
    path = plan_of(tmp_path / "weak", weak).policy.path
    plan = plan_of(
        tmp_path / "out",
        labels=None,
        weak=ModelSpec("weak", path),
        pairing=PairingSettings(max_pairs=2),
    )
    run_rollout(plan)
    pairs = pairs_in(tmp_path / "out")
    assert len(pairs) == 2 * len(ANSWERS)
    for pair in pairs:
        assert pair["rejected"] == f"weak {pair['chosen']}"
        assert pair["metadata"]["chosen"]["score"] > pair["metadata"]["rejected"]["score"]
        assert pair["metadata"]["judge"] is None


def test_the_data_sets_own_answers_meet_the_samples(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out", pairing=PairingSettings(rule="with_reference", max_pairs=1))
    rows = [{"prompt": prompt, "output": "5 from the data set"} for prompt in ANSWERS]
    prompts = write_prompts(tmp_path / "with-answers.jsonl", rows)
    plan = replace(plan, prompts=PromptSource({"name": str(prompts), "split": "train"}))
    run_rollout(plan)
    for pair in pairs_in(tmp_path / "out"):
        texts = ["5 from the data set", *ANSWERS[pair["prompt_messages"][0]["content"]]]
        assert "5 from the data set" in (pair["chosen"], pair["rejected"])
        far = max(texts, key=lambda text: abs(int(text.split()[0]) - 5))
        assert far in (pair["chosen"], pair["rejected"])
    unlabelled = replace(plan, labels=None, folder=tmp_path / "unlabelled")
    run_rollout(unlabelled)
    assert {pair["chosen"] for pair in pairs_in(tmp_path / "unlabelled")} == {"5 from the data set"}


def test_prompts_of_an_evaluation_are_not_sampled_and_are_listed(tmp_path: Path) -> None:
    evaluation = write_prompts(tmp_path / "evaluation.jsonl", ["QUESTION  3", "question 8", "another"])
    plan = plan_of(tmp_path / "out")
    source = replace(plan.prompts, exclude=[{"name": str(evaluation), "split": "test"}])
    result = run_rollout(replace(plan, prompts=source))
    asked = {row["messages"][0]["content"] for row in rows_of(tmp_path / "out" / "prompts.jsonl")}
    assert asked == set(ANSWERS) - {"question 3", "question 8"}
    assert result.summary["dropped"]["evaluation_prompt"] == 2
    limited = replace(plan, folder=tmp_path / "five", prompts=replace(source, limit=5))
    run_rollout(limited)
    assert len(rows_of(tmp_path / "five" / "prompts.jsonl")) == 5


def test_rounds_that_skip_what_the_earlier_ones_took_share_no_prompt(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "out")
    seen: list[str] = []
    for number in range(3):
        source = replace(plan.prompts, limit=3, skip=3 * number)
        folder = tmp_path / f"round-{number}"
        run_rollout(replace(plan, folder=folder, prompts=source))
        seen += [row["messages"][0]["content"] for row in rows_of(folder / "prompts.jsonl")]
    assert sorted(seen) == sorted(ANSWERS)


# ---- orders and shards ----


def shuffled(answers: dict[str, list[str]], seed: int) -> dict[str, list[str]]:
    prompts = list(answers)
    random.Random(seed).shuffle(prompts)
    return {prompt: answers[prompt] for prompt in prompts}


PERMANENT = ("pairs.jsonl", "dropped.jsonl", "summary.json")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_permuting_the_prompts_changes_no_pair(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("rollouts")
    run_rollout(plan_of(folder / "as-given"))
    run_rollout(plan_of(folder / "permuted", shuffled(ANSWERS, seed)))

    def pairs_without_path(name: str) -> str:
        path = plan_of(folder / name).policy.path
        return (folder / name / "pairs.jsonl").read_text().replace(json.dumps(path)[1:-1], "PATH")

    assert pairs_without_path("as-given") == pairs_without_path("permuted")
    for pair in pairs_in(folder / "permuted"):
        # Answers belong to their prompt.
        texts = ANSWERS[pair["prompt_messages"][0]["content"]]
        assert {pair["chosen"], pair["rejected"]} <= set(texts)


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("rule", ["best_worst", "all"])
def test_shards_lose_nothing_and_merge_to_the_same_file(tmp_path: Path, count: int, rule: str) -> None:
    plan = plan_of(tmp_path / "whole", pairing=PairingSettings(rule=rule))
    excluded = write_prompts(tmp_path / "evaluation.jsonl", ["question 0", "question 4"])
    source = replace(plan.prompts, exclude=[{"name": str(excluded), "split": "test"}])
    plan = replace(plan, prompts=source)
    run_rollout(plan)
    shards = [
        replace(plan, folder=tmp_path / f"shard-{number}", shard=Shard(number, count))
        for number in range(1, count + 1)
    ]
    for shard in shards:
        run_rollout(shard)
    taken = [row["id"] for shard in shards for row in rows_of(shard.folder / "prompts.jsonl")]
    assert len(taken) == len(set(taken)) == 7
    merge_shards(shards[::-1], tmp_path / "merged")
    whole, merged = files_of(tmp_path / "whole"), files_of(tmp_path / "merged")
    for name in (*PERMANENT, "prompts.jsonl"):
        assert merged[name] == whole[name], name
    # The merged folder is a rollout like any other.
    run_rollout(replace(plan, folder=tmp_path / "merged"))
    assert files_of(tmp_path / "merged") == merged


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "whole")
    shards = [
        replace(plan, folder=tmp_path / f"shard-{number}", shard=Shard(number, 3)) for number in (1, 2, 3)
    ]
    run_rollout(shards[0])
    run_rollout(shards[1])
    with pytest.raises(ConfigError, match=r"1/3 to 3/3 are needed, each once; given are 1/3 in .*, 2/3 in"):
        merge_shards(shards[:2], tmp_path / "merged")
    with pytest.raises(ConfigError, match="each once"):
        merge_shards([*shards[:2], shards[1]], tmp_path / "merged")
    with pytest.raises(ConfigError, match="nothing of the stage prepare yet"):
        merge_shards(shards, tmp_path / "merged")
    run_rollout(replace(shards[2], labels=Scoring({"number": scoring("helpers_rollouts:length")})))
    with pytest.raises(ConfigError, match=r"rollout\.judge and what belongs to it changed"):
        merge_shards(shards, tmp_path / "merged")
    run_rollout(shards[2])
    few = replace(shards[2], prompts=replace(plan.prompts, limit=5))
    with pytest.raises(ConfigError, match="was made with other prompts"):
        merge_shards([*shards[:2], few], tmp_path / "merged")


def test_a_shard_without_a_prompt_is_empty_and_not_an_error(tmp_path: Path) -> None:
    plan = replace(plan_of(tmp_path / "out"), shard=Shard(20, 20))
    assert run_rollout(plan).summary["pairs"] == 0
    assert pairs_in(tmp_path / "out") == []


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be i/n"):
        Shard.read(text)


# ---- pairs are trained on ----


def test_the_tokens_of_a_pair_are_those_that_were_sampled(sampling: RolloutPlan, model: str) -> None:
    from transformers import AutoTokenizer

    from dynamic_dpo.data import prepare_preferences

    run_rollout(sampling)
    tokenizer = AutoTokenizer.from_pretrained(model)
    prepared = prepare_preferences(str(sampling.folder), tokenizer, generated_data=True, val_ratio=0.0)
    pairs = pairs_in(sampling.folder)
    assert prepared.report["kind"] == "sampled"
    assert len(prepared.train) == len(pairs)
    for row in prepared.train:
        pair = pairs[row["row"]]
        for side in ("chosen", "rejected"):
            # One stop token: the one that was sampled, or the template's where the answer was cut off.
            is_closed = pair["metadata"][side]["finish_reason"] == "stop"
            assert row[f"{side}_ids"] == pair[f"{side}_ids"] + [2] * (not is_closed)
            assert row[f"{side}_ids"].count(2) == 1
        assert row["prompt_ids"] == tokenizer.apply_chat_template(
            pair["prompt_messages"], add_generation_prompt=True, return_dict=False
        )
