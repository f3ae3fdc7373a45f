"""The report of an evaluation: what its records come to, in words, tables, figures and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.eval.report.data import EvaluationData
    from dynamic_dpo.eval.report.write import ReportPaths, write_evaluation_report

__all__ = ["EvaluationData", "ReportPaths", "write_evaluation_report"]

_HOME = {"EvaluationData": "data", "ReportPaths": "write", "write_evaluation_report": "write"}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
