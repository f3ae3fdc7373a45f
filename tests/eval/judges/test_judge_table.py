"""The table of judges: what a line promises, and that a line and a file are all that a further kind needs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from dynamic_dpo.cli.build_evaluation import build_judge, build_plan
from dynamic_dpo.config import get_evaluation_config
from dynamic_dpo.eval.judges.base import Judge
from dynamic_dpo.eval.judges.table import JUDGES
from dynamic_dpo.utils.hashing import content_hash

SMALL = {"dataset": {"name": "rows.jsonl"}, "models": {"start": "models/start", "trained": "models/trained"}}
VADER = "dynamic_dpo.eval.rewards:vader"


@pytest.mark.parametrize("name", JUDGES)
def test_a_maker_takes_the_settings_of_its_line(name: str) -> None:
    module, _, function = JUDGES[name].maker.partition(":")
    maker = getattr(import_module(f"dynamic_dpo.eval.judges.{module}"), function)
    assert set(inspect.signature(maker).parameters) == set(JUDGES[name].settings)
    section = get_evaluation_config({}).judge
    assert set(JUDGES[name].settings) - {"gpt4_oracle", "device"} <= set(type(section).model_fields)


@pytest.mark.parametrize(
    ("settings", "identity"),
    [
        ({"kind": "function", "function": VADER}, "24c97825"),
        ({"kind": "function", "function": VADER, "tie_tolerance": 0.5}, "d4305932"),
        ({"kind": "reward_model", "reward_model": "org/rm", "batch_size": 2}, "b4bc0e20"),
    ],
)
def test_answers_of_version_0_2_are_taken_for_those_of_the_same_settings(
    settings: dict[str, Any], identity: str
) -> None:
    plan = build_plan(get_evaluation_config({**SMALL, "judge": settings}))
    assert content_hash(plan.judging.identity)[:8] == identity


def test_what_is_made_is_a_judge_with_a_fingerprint_of_json_types() -> None:
    for settings in ({}, {"judge": {"kind": "function", "function": VADER}}):
        judge = build_judge(get_evaluation_config(settings))
        assert isinstance(judge, Judge)
        assert json.loads(json.dumps(judge.fingerprint())) == judge.fingerprint()


A_FURTHER_KIND = """
import sys, types
import dynamic_dpo.eval.judges.table as table
from dynamic_dpo.eval.judges.base import PointwiseJudge

class Brevity:
    name, batch_size = "brevity", 8
    def fingerprint(self):
        return {"kind": "brevity"}
    def score_many(self, items):
        return [-float(len(text)) for _, text in items]

module = sys.modules["dynamic_dpo.eval.judges.brevity"] = types.ModuleType("brevity")
module.brevity_judge = lambda *, tie_tolerance: PointwiseJudge(Brevity(), tie_tolerance=tie_tolerance)
table.JUDGES["brevity"] = table.JudgeKind("brevity:brevity_judge", ("tie_tolerance",))

from dynamic_dpo.cli.build_evaluation import build_judge
from dynamic_dpo.config import get_evaluation_config
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.records import PromptRecord

judge = build_judge(get_evaluation_config({"judge": {"kind": "brevity", "tie_tolerance": 1}}))
prompt = PromptRecord.of([{"role": "user", "content": "Well?"}])
print(judge.ask(prompt, "Yes.", "Yes, of course.").verdict, judge.ask(prompt, "No.", "Yes.").verdict)
try:
    get_evaluation_config({"judge": {"kind": "brevity", "logprobs": True}})
except ConfigError as error:
    print(error)
"""


def test_a_further_kind_is_a_file_and_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", A_FURTHER_KIND], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    verdicts, refusal = done.stdout.splitlines()
    assert verdicts == "A tie"
    assert "judge.logprobs has no effect while judge.kind is brevity: leave it out" in refusal
