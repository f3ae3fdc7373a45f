"""Judgements and comparisons written down by hand, for tests of statistics and of what is built on them."""

from __future__ import annotations

from typing import Any

from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.eval.statistics import resampling
from dynamic_dpo.eval.statistics.comparisons import Comparison, Counts


def judged(prompt: str, first: str, second: str, verdict: str, **rest: Any) -> JudgementRecord:
    fields = {"sample": 0, "judge": "judge", **rest}
    key = f"{prompt}/{fields['sample']}/{first}/{second}/{fields['judge']}"
    return JudgementRecord(key=key, id=prompt, first=first, second=second, verdict=verdict, **fields)


def comparison(*outcomes: Counts) -> Comparison:
    return Comparison("new", "old", "judge", {f"p{n:04d}": counts for n, counts in enumerate(outcomes)})


def width(interval: resampling.Interval) -> float:
    return interval.high - interval.low
