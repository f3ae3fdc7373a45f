"""Scores of given pairs: the training's own scoring function, checked against plain logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from dynamic_dpo.cli import main as umbrella
from dynamic_dpo.cli import score as command
from dynamic_dpo.errors import ConfigError, DataError, ModelError
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.scoring.outputs import ScoringSettings, held_out_margins
from dynamic_dpo.eval.scoring.pairs import ScoredPairs, score_pairs, write_scores
from tiny import tiny_llama, word_tokenizer

ROWS = [
    {"prompt": f"w{n} w{n + 1}", "chosen": f" w{n + 2} w{n + 3} w{n + 4}", "rejected": f" w{n + 5}"}
    for n in range(0, 30, 3)
]


def save(folder: Path, seed: int) -> str:
    tiny_llama(seed=seed).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "policy", 1), save(folder / "reference", 0)


@pytest.fixture(scope="module")
def found(models: tuple[str, str]) -> ScoredPairs:
    return score_pairs(*models, ROWS, beta=0.5, device="cpu", progress=False)


def summed_logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(logits[len(prompt) - 1 + k, token].item() for k, token in enumerate(answer))


def test_scores_are_the_summed_log_probabilities_of_the_plain_models(found: ScoredPairs) -> None:
    policy, reference = tiny_llama(seed=1).eval(), tiny_llama(seed=0).eval()
    assert [pair.row for pair in found.pairs] == list(range(10))
    for n, pair in zip(range(0, 30, 3), found.pairs, strict=True):
        # w0 has id 4; answers end with </s>, id 2.
        prompt, chosen, rejected = [n + 4, n + 5], [n + 6, n + 7, n + 8, 2], [n + 9, 2]
        logratios = [
            summed_logprob(policy, prompt, answer) - summed_logprob(reference, prompt, answer)
            for answer in (chosen, rejected)
        ]
        assert pair.chosen_reward == pytest.approx(0.5 * logratios[0], abs=2e-5)
        assert pair.rejected_reward == pytest.approx(0.5 * logratios[1], abs=2e-5)
        assert pair.margin == pytest.approx(logratios[0] - logratios[1], abs=4e-5)
        assert pair.reward_margin == pytest.approx(0.5 * pair.margin, rel=1e-12)
        assert (pair.chosen_tokens, pair.rejected_tokens) == (4, 2)


def test_a_swapped_pair_negates_its_margin_and_the_token_budget_changes_nothing(
    models: tuple[str, str], found: ScoredPairs
) -> None:
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in ROWS]
    back = score_pairs(*models, swapped, device="cpu", tokens_per_microbatch=8, progress=False)
    assert found.margins == pytest.approx([-margin for margin in back.margins], abs=2e-5)
    assert len({pair.id for pair in (*found.pairs, *back.pairs)}) == 20


def test_a_model_against_itself_has_no_margin(models: tuple[str, str]) -> None:
    assert score_pairs(models[0], models[0], ROWS, device="cpu", progress=False).margins == [0.0] * 10


def test_a_margin_is_what_the_trainer_evaluates(found: ScoredPairs, tmp_path: Path) -> None:
    from dynamic_dpo.data.preference import to_preference_pairs
    from dynamic_dpo.data.tokenize import tokenize_pairs
    from dynamic_dpo.methods import DPO, DPOMethodConfig
    from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
    from tiny import training_arguments

    pairs = tokenize_pairs(to_preference_pairs(ROWS).dataset, word_tokenizer()).dataset
    trainer = PreferenceTrainer(
        tiny_llama(seed=1),
        tiny_llama(seed=0),
        training_arguments(tmp_path),
        pairs,
        pairs,
        word_tokenizer(),
        method=DPO(DPOMethodConfig(beta=0.5)),
    )
    metrics = trainer.evaluate()
    mean = sum(pair.reward_margin for pair in found.pairs) / 10
    assert metrics["eval_rewards/margins"] == pytest.approx(mean, abs=2e-5)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(
        sum(margin > 0 for margin in found.margins) / 10
    )


def test_a_model_and_its_weights_are_freed_before_the_next_is_loaded(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    from dynamic_dpo.eval.scoring import logps

    loaded: list[weakref.ref[Any]] = []  # Lean layers refer to themselves.
    original = logps.open_model

    def watched(*args: Any, **kwargs: Any) -> Any:
        assert [part() for part in loaded if part() is not None] == []
        model, tokenizer = original(*args, **kwargs)
        loaded.extend(weakref.ref(part) for part in (model, *model.parameters()))
        return model, tokenizer

    monkeypatch.setattr(logps, "open_model", watched)
    score_pairs(*models, ROWS[:2], device="cpu", progress=False)
    assert len(loaded) == 2 * 22


def test_an_adapter_is_scored_against_its_own_base(models: tuple[str, str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(models[1])
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    alone = score_pairs(str(tmp_path / "adapter"), None, ROWS[:4], device="cpu", progress=False)
    named = score_pairs(str(tmp_path / "adapter"), models[1], ROWS[:4], device="cpu", progress=False)
    assert alone.margins == pytest.approx(named.margins, abs=2e-5)
    assert max(map(abs, alone.margins)) > 1e-3


def test_held_out_pairs_are_scored_with_the_revision_that_writes_the_outputs(
    models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def fetch(name: str, *, revision: str | None, ignore_patterns: list[str]) -> str:
        asked.append((name, revision))
        return models[0]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = ScoringSettings(models[1], str(pairs), beta=0.5, device="cpu")
    margins = held_out_margins(ModelSpec("m", "some/model", revision="v2"), settings, progress=False)
    assert asked == [("some/model", "v2")]
    assert margins == score_pairs(*models, ROWS, device="cpu", progress=False).margins


def test_bad_rows_are_counted_and_too_many_are_an_error(models: tuple[str, str]) -> None:
    rows = [*ROWS, {"prompt": "w1", "chosen": "w2", "rejected": "w2"}]
    with pytest.raises(DataError, match="identical_answers"):
        score_pairs(*models, rows, device="cpu", progress=False)
    found = score_pairs(*models, rows, quarantine_max_share=0.1, max_length=4, device="cpu", progress=False)
    assert found.quarantined == {"identical_answers": 1}
    assert (len(found.pairs), found.num_truncated) == (10, 10)


def test_what_cannot_be_scored_is_said_before_anything_is_loaded(
    models: tuple[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="name the model that training started from"):
        score_pairs(models[0], None, ROWS)
    with pytest.raises(ConfigError, match="beta must be positive, got 0"):
        score_pairs(*models, ROWS, beta=0)
    other = Path(save(tmp_path / "other", 0))
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=r"different tokenizers \(96 and 97 tokens, 1 not the same\)"):
        score_pairs(models[0], str(other), ROWS, device="cpu")


def test_a_datasets_dataset_is_taken_too_and_scores_are_written_whole(
    models: tuple[str, str], found: ScoredPairs, tmp_path: Path
) -> None:
    two = score_pairs(*models, Dataset.from_list(ROWS[:2]), beta=0.5, device="cpu", progress=False)
    assert two.margins == pytest.approx(found.margins[:2], abs=2e-5)
    path = write_scores(tmp_path / "scores.jsonl", found.pairs)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[3]["margin"] == found.pairs[3].margin
    assert len(lines) == 10


# ---- the command ----


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_command_writes_a_line_a_pair_and_prints_the_accuracy(
    models: tuple[str, str], pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.jsonl"
    arguments = ["--model", models[0], "--reference", models[1], "--data", str(pairs_file), "--beta", "0.5"]
    assert umbrella.main(["score", str(out), *arguments, "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    accuracy = sum(line["margin"] > 0 for line in lines) / 10
    printed = capsys.readouterr().out
    assert "10 pairs" in printed
    assert f"accuracy {accuracy:.1%}" in printed


def test_the_command_takes_models_data_and_last_beta_from_the_trainings_file(
    models: tuple[str, str], pairs_file: Path, tmp_path: Path
) -> None:
    run = Path(save(tmp_path / "run", 1))
    (run / "run_summary.json").write_text('{"beta_final": 0.25}')
    config = tmp_path / "dpo.yaml"
    config.write_text(
        f"policy_name: {models[1]}\nprecision: fp32\ndataset: {{dataset_name: {pairs_file}, subset: 'train[:4]'}}\n"
        f"dpo_training: {{save_dir: {run}}}\n"
    )
    out = tmp_path / "scores.jsonl"
    assert command.main([str(out), "--config", str(config), "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0]["reward_margin"] == pytest.approx(0.25 * lines[0]["margin"])
    assert command.main([str(out), "--config", str(config), "--device", "cpu", "--subset", "train"]) == 0
    assert len(out.read_text().splitlines()) == 10


def test_the_command_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "out"), "--model", "m"]) == 2
    assert "score needs --data" in capsys.readouterr().err
