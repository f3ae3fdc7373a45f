"""Judges that score one output at a time: Python functions and reward models."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from dynamic_dpo.errors import ConfigError, DataError, JudgeError, ModelError
from dynamic_dpo.eval.judges.base import BatchJudge, PointwiseJudge
from dynamic_dpo.eval.judges.function import FunctionScorer, load_function
from dynamic_dpo.eval.judges.reward_model import RewardModelScorer
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.judging.ledger import JudgeLedger
from dynamic_dpo.eval.judging.questions import make_questions
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.eval.rewards import vader
from tiny import word_tokenizer

PROMPT = PromptRecord.of([{"role": "user", "content": "w1 w2"}])


# --- functions


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a module of a user's functions, by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_vader_judges_through_its_dotted_path(tmp_path: Path) -> None:
    outputs = [
        OutputRecord(PROMPT.id, "kind", 0, "A lovely, warm place.", 5, True),
        OutputRecord(PROMPT.id, "rude", 0, "A horrible, cold place.", 5, True),
    ]
    judge = PointwiseJudge(FunctionScorer("dynamic_dpo.eval.rewards:vader"), tie_tolerance=0.05)
    questions = make_questions([PROMPT], outputs, [("kind", "rude")]).questions
    with JudgeLedger(tmp_path / "judgements.jsonl") as ledger:
        outcome = run_judging(questions, judge, ledger, progress=False)
    assert [record.winner for record in outcome.records] == ["kind", "kind"]
    assert (
        outcome.records[0].reason
        == f"score of A {vader(outputs[0].text):.6g}, of B {vader(outputs[1].text):.6g}"
    )
    assert outcome.spent.cost == 0.0


def test_both_ways_to_write_a_path_are_one_judge() -> None:
    paths = ["dynamic_dpo.eval.rewards:vader", "dynamic_dpo.eval.rewards.vader"]
    prints = [FunctionScorer(path).fingerprint() for path in paths]
    assert prints[0] == prints[1]


def test_a_function_of_two_arguments_gets_the_prompt_as_text(module: Any) -> None:
    name = module("two_arguments", "def score(prompt, output):\n    return float(output in prompt)\n")
    scorer = FunctionScorer(f"{name}:score")
    assert scorer.score_many([(PROMPT, "w2"), (PROMPT, "w3")]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("signature", "takes_prompt"),
    [
        ("text", False),
        ("text, lower=True", False),
        ("prompt, text", True),
        ("prompt, text, *, scale=1", True),
        ("*texts", True),
        ("text, **rest", False),
    ],
)
def test_the_arguments_follow_from_the_signature(module: Any, signature: str, takes_prompt: bool) -> None:
    name = module("signatures", f"def score({signature}):\n    return len(locals())\n")
    assert FunctionScorer(f"{name}:score")._takes_prompt is takes_prompt


def test_a_changed_function_is_another_judge(module: Any) -> None:
    before = FunctionScorer(module("changing", "def score(text):\n    return 1\n") + ":score").fingerprint()
    sys.modules.pop("changing")
    import linecache

    module("changing", "def score(text):\n    return 1 + len(text)\n")
    linecache.checkcache()
    assert FunctionScorer("changing:score").fingerprint() != before
    # Functions written in C have no source, and a path all the same.
    assert FunctionScorer("builtins:len").fingerprint()["source_sha256"] is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vader", "must have the form package.module:function, got 'vader'"),
        ("", "must have the form"),
        ("a b:c", "must have the form"),
        (
            "no_such_package:score",
            r"cannot import 'no_such_package' \(No module named 'no_such_package'\); install",
        ),
        ("dynamic_dpo.eval.rewards:wader", "has no 'wader'; it has .*vader"),
        ("dynamic_dpo.eval.lint:REPEATED_WORDS", "is a int, expected a function"),
    ],
)
def test_a_wrong_path_says_what_is_wrong(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_function(path)


def test_a_function_with_other_arguments_is_refused(module: Any) -> None:
    name = module("three", "def score(a, b, c):\n    return 0\n")
    with pytest.raises(ConfigError, match=r"takes \(a, b, c\), expected one argument \(the output\) or two"):
        FunctionScorer(f"{name}:score")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 'good'", "must return a number, got 'good' of type str"),
        ("return None", "must return a number, got None"),
        ("return True", "must return a number, got True of type bool"),
        ("return 1 / 0", "failed on the output 'w3' of prompt .*: ZeroDivisionError: division by zero"),
        ("return float('nan')", "gave the score nan to the output"),
    ],
)
def test_a_function_that_gives_no_number_is_an_error_and_no_tie(module: Any, body: str, message: str) -> None:
    name = module("broken", f"def score(text):\n    {body}\n")
    with pytest.raises(JudgeError, match=message):
        PointwiseJudge(FunctionScorer(f"{name}:score")).ask(PROMPT, "w3", "w4")


def test_a_number_of_numpy_is_a_number(module: Any) -> None:
    name = module("numpy_scores", "import numpy\ndef score(text):\n    return numpy.float32(0.5)\n")
    assert FunctionScorer(f"{name}:score").score(PROMPT, "w3") == 0.5


def test_without_vader_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from dynamic_dpo.eval import rewards

    rewards._analyzer.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(JudgeError, match=r"pip install 'dynamic-dpo\[quickstart\]'"):
        FunctionScorer("dynamic_dpo.eval.rewards:vader").score(PROMPT, "good")


# --- reward models

TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def save_model(folder: Path, *, pad: int | None = 0, labels: int = 1, kind: str = "reward") -> str:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(template=TEMPLATE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=labels,
        pad_token_id=pad,
    )
    model = LlamaForSequenceClassification(config) if kind == "reward" else LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


ITEMS = [(PROMPT, " ".join(f"w{n}" for n in range(3, 3 + length))) for length in (1, 5, 2, 7, 3)]


@pytest.mark.parametrize("pad", [0, None])
def test_scores_are_those_of_the_model_alone_at_every_batch_size(tmp_path: Path, pad: int | None) -> None:
    path = save_model(tmp_path, pad=pad)
    scorer = RewardModelScorer(path, batch_size=3, device="cpu")
    scores = scorer.score_many(ITEMS)
    assert len({round(score, 4) for score in scores}) == 5
    model = LlamaForSequenceClassification.from_pretrained(path).eval()
    tokenizer = word_tokenizer(template=TEMPLATE)
    for (_, text), score in zip(ITEMS, scores, strict=True):
        ids = tokenizer(f"user w1 w2 assistant {text} ", return_tensors="pt", add_special_tokens=False)[
            "input_ids"
        ]
        with torch.no_grad():
            assert score == pytest.approx(model(input_ids=ids).logits.item(), abs=1e-5)
    assert scorer.score(*ITEMS[1]) == pytest.approx(scores[1], abs=1e-6)


def test_a_reward_model_judges_pairs_in_batches(tmp_path: Path) -> None:
    scorer = RewardModelScorer(save_model(tmp_path / "my-rewards"), device="cpu")
    judge = PointwiseJudge(scorer)
    assert isinstance(judge, BatchJudge)
    assert judge.name == "my-rewards"
    better = max(ITEMS, key=lambda item: scorer.score(*item))[1]
    worse = min(ITEMS, key=lambda item: scorer.score(*item))[1]
    assert judge.ask(PROMPT, better, worse).verdict is Verdict.A
    assert judge.ask(PROMPT, worse, better).verdict is Verdict.B


def test_without_a_template_roles_are_written_out(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    scorer = RewardModelScorer(path, device="cpu")
    _, tokenizer = scorer._load()
    assert tokenizer.chat_template is None
    assert tokenizer.decode(scorer._render(tokenizer, PROMPT, "w3")).count("w") >= 3


def test_a_retrained_model_or_another_template_is_another_judge(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    before = RewardModelScorer(path).fingerprint()
    assert RewardModelScorer(path, batch_size=2).fingerprint() == before
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE + "x")
    template = RewardModelScorer(path).fingerprint()
    save_model(tmp_path, labels=1, pad=5)
    weights = RewardModelScorer(path).fingerprint()
    assert len({str(f) for f in (before, template, weights)}) == 3
    assert "model" not in before  # it costs nothing


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            {"labels": 2},
            "expected a sequence classifier with 1 label, found LlamaForSequenceClassification with 2",
        ),
        ({"kind": "language", "labels": 1}, "found LlamaForCausalLM"),
    ],
)
def test_what_is_no_reward_model_is_refused(tmp_path: Path, what: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        RewardModelScorer(save_model(tmp_path, **what)).score(PROMPT, "w3")


def test_a_conversation_that_is_too_long_is_named(tmp_path: Path) -> None:
    scorer = RewardModelScorer(save_model(tmp_path), device="cpu")
    with pytest.raises(DataError, match=rf"prompt {PROMPT.id} with its output has 44 tokens, .* reads 32"):
        scorer.score(PROMPT, "w3 " * 40)


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_that_is_not_whole_is_named(tmp_path: Path, missing: str) -> None:
    path = save_model(tmp_path)
    (tmp_path / missing).unlink()
    if missing == "tokenizer.json":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError):
        RewardModelScorer(path, device="cpu").score(PROMPT, "w3")


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"judge\.batch_size must be at least 1, got 0"):
        RewardModelScorer("m", batch_size=0)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no", "rollout.scorers.kind.function must have the form"),
        ("no_such_module:f", "rollout.scorers.kind.function 'no_such_module:f': cannot import"),
        ("math:no", "rollout.scorers.kind.function 'math:no': 'math' has no"),
        ("math:pi", "rollout.scorers.kind.function 'math:pi' is a float"),
        ("operator:setitem", "rollout.scorers.kind.function 'operator:setitem' takes"),
    ],
)
def test_a_message_names_the_setting_that_was_given(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        FunctionScorer(path, setting="rollout.scorers.kind.function")
