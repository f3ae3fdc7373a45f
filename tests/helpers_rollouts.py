"""A whole rollout in small: answers that lie in a file, and scorers that read a number out of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.judges.base import Reply
from dynamic_dpo.eval.judges.function import FunctionScorer
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.plan import JudgingSettings
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.plan import Comparing, PromptSource, RolloutPlan, Scoring, WeightedScorer

ANSWERS = {
    f"question {n}": [f"{(n * 7 + k * k * 5) % 11} is what sample {k} says to {n}" for k in range(4)]
    for n in range(9)
}


def first_number(text: str) -> float:
    """The score of an answer that begins with it."""
    return float(text.split()[0])


def length(text: str) -> float:
    return float(len(text))


class FirstNumberWins:
    """A judge that counts its questions; the answer that begins with the larger number wins, as far as it is told.

    Attributes:
        asked: The questions, as prompt and the two answers in the order shown.
        flips: Prompts for which it prefers what it is shown first.
        silent: Answers about which it gives no verdict.
    """

    name, max_attempts = "numbers", 1

    def __init__(self, *, flips: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.flips, self.silent = set(flips), set(silent)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "numbers"}

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        self.asked.append((prompt.messages[-1]["content"], first, second))
        if {first, second} & self.silent:
            return Reply(Verdict.INVALID, "hm")
        if prompt.messages[-1]["content"] in self.flips:
            return Reply(Verdict.A)
        difference = first_number(first) - first_number(second)
        return Reply(Verdict.TIE if difference == 0 else Verdict.A if difference > 0 else Verdict.B)


def write_answers(path: Path, answers: Mapping[str, Sequence[str]]) -> Path:
    rows = [
        {"instruction": prompt, "output": text, "generator": "m"}
        for prompt, texts in answers.items()
        for text in texts
    ]
    path.write_text(json.dumps(rows))
    return path


def write_prompts(path: Path, prompts: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def scoring(function: str = "helpers_rollouts:first_number", weight: float = 1.0) -> WeightedScorer:
    return WeightedScorer(lambda: FunctionScorer(function), {"function": function}, weight)


def comparing(judge: FirstNumberWins, **settings: Any) -> Comparing:
    return Comparing(JudgingSettings(lambda: judge, {"kind": "numbers"}, concurrency=1), **settings)


def plan_of(folder: Path, answers: Mapping[str, Sequence[str]] = ANSWERS, **changes: Any) -> RolloutPlan:
    """A plan over answers that are there already, written beside the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    outputs = write_answers(folder.with_name(f"{folder.name}-answers.json"), answers)
    prompts = write_prompts(folder.with_name(f"{folder.name}-prompts.jsonl"), list(answers))
    plan = RolloutPlan(
        folder=folder,
        prompts=PromptSource({"name": str(prompts), "split": "train", "seed": 3}),
        policy=ModelSpec("policy", f"outputs:{outputs}"),
        generation=GenerationSettings(num_samples=max(map(len, answers.values())), device="cpu"),
        labels=changes.pop("labels", Scoring({"number": scoring()})),
        pairing=changes.pop("pairing", RolloutPlan.__dataclass_fields__["pairing"].default_factory()),
        weak=changes.pop("weak", None),
        progress=False,
    )
    return replace(plan, **changes)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
