"""Generation of outputs, the judge, and the report of a run; each part loads when it is first named."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamic_dpo.eval.generate import Generation as Generation
    from dynamic_dpo.eval.generate import generate as generate
    from dynamic_dpo.eval.gpt_oracle import GPT4Oracle as GPT4Oracle
    from dynamic_dpo.eval.gpt_oracle import Judgement as Judgement
    from dynamic_dpo.eval.lint import lint_output as lint_output
    from dynamic_dpo.eval.run_report import Sample as Sample
    from dynamic_dpo.eval.run_report import write_run_report as write_run_report
    from dynamic_dpo.eval.verdict import Verdict as Verdict
    from dynamic_dpo.eval.verdict import parse_verdict as parse_verdict

_HOME = {
    "GPT4Oracle": "gpt_oracle",
    "Generation": "generate",
    "Judgement": "gpt_oracle",
    "Sample": "run_report",
    "Verdict": "verdict",
    "lint_output": "lint",
    "parse_verdict": "verdict",
    "write_run_report": "run_report",
}

__all__ = [
    "GPT4Oracle",
    "Generation",
    "Judgement",
    "Sample",
    "Verdict",
    "generate",
    "lint_output",
    "parse_verdict",
    "write_run_report",
]


def __getattr__(name: str) -> Any:
    if name == "generate":
        # The module is the function as well; importing it binds it here, for good.
        return import_module("dynamic_dpo.eval.generate")
    if name in _HOME:
        return getattr(import_module(f"dynamic_dpo.eval.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
