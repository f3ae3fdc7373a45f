"""The CPU's kernel against attention by brute force: outputs and gradients."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from dynamic_dpo.engine.packed import span_attention, span_pieces
from dynamic_dpo.engine.packed.span_attention import packed_attention
from dynamic_dpo.engine.rows import PromptSpan
from helpers_attention import by_brute_force, largest_error, output_and_gradients, random_inputs, random_spans

SPANS = random_spans(random.Random(3), prompts=6, longest=40)
# A row of one prompt and one completion of a token each: nothing but the prompt's own position.
SHORTEST = (PromptSpan(0, 1, (1, 1)),)

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"groups": 2},
    "a window of two": {"window": 2},
    "a short window": {"window": 7, "groups": 2},
    "a window that some reach": {"window": 50},
    "capped": {"softcap": 2.0, "groups": 2},
    "capped under a window": {"softcap": 2.0, "window": 9},
    "sinks": {"sinks": True, "groups": 2},
    "sinks under a window": {"sinks": True, "window": 9, "groups": 1},
    "narrow values": {"widths": (12, 8), "groups": 2},
    "wide values": {"widths": (8, 12), "groups": 2, "window": 11},
    "all at once": {"softcap": 2.0, "window": 13, "sinks": True, "widths": (12, 8), "groups": 2},
}


def error(spans: tuple[PromptSpan, ...], dtype: torch.dtype, rule: dict[str, Any]) -> float:
    rule = dict(rule)
    shapes = {"heads": 4, "groups": rule.pop("groups", 4), "widths": rule.pop("widths", (8, 8))}
    sinks = rule.pop("sinks", False)
    inputs = random_inputs(spans[-1].end, dtype=dtype, **shapes)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    rule |= {"scale": 0.3, "sinks": sinks}
    ours = output_and_gradients(packed_attention, spans, inputs, **rule)
    assert all(tensor.dtype == dtype for tensor in ours)
    return largest_error(ours, output_and_gradients(by_brute_force, spans, exact, **rule))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-13)], ids=str)
def test_the_kernel_is_attention_by_brute_force(
    rule: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    assert error(SPANS, dtype, rule) < tolerance


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_so_it_is_in_bfloat16_and_on_the_shortest_row(rule: dict[str, Any]) -> None:
    assert error(SPANS, torch.bfloat16, rule) < 0.03
    # A lone token's output is its value, whatever its score: but for sinks its gradient to the score is 0.
    ours = random_inputs(1, dtype=torch.float64)
    output = packed_attention(*ours[:3], SHORTEST, window=rule.get("window"), softcap=rule.get("softcap"))
    assert torch.equal(output, ours[2].repeat_interleave(2, 1))


@pytest.mark.parametrize("name", ["a short window", "capped", "all at once"])
def test_many_small_blocks_are_one_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_pieces, "_FEWEST_QUERIES", 3)
    monkeypatch.setattr(span_pieces, "_MOST_QUERIES", 5)
    monkeypatch.setattr(span_attention, "_MOST_SCORES", 64)
    assert error(SPANS, torch.float64, RULES[name]) < 1e-13


@pytest.mark.parametrize("softcap", [None, 80.0], ids=["as they are", "capped"])
def test_large_scores_neither_overflow_nor_vanish(softcap: float | None) -> None:
    query, key, value, sinks, weights = random_inputs(SPANS[-1].end, dtype=torch.float64)
    rule: dict[str, Any] = {"softcap": softcap, "window": 9, "sinks": True, "scale": 0.3}
    inputs = tuple((part.detach() * 30).requires_grad_() for part in (query, key, value, sinks))
    answers = [
        output_and_gradients(attend, SPANS, (*inputs, weights), **rule)
        for attend in (packed_attention, by_brute_force)
    ]
    assert largest_error(*answers) < 1e-11


def test_autocast_changes_nothing_inside() -> None:
    inputs = random_inputs(SPANS[-1].end, dtype=torch.float32)
    rule: dict[str, Any] = {"softcap": 2.0, "window": 9, "sinks": True}
    before = output_and_gradients(packed_attention, SPANS, inputs, **rule)
    with torch.autocast("cpu", torch.bfloat16):
        within = output_and_gradients(packed_attention, SPANS, inputs, **rule)
    assert all(torch.equal(one, other) for one, other in zip(before, within, strict=True))


def test_a_small_window_over_a_long_row_costs_little_memory() -> None:
    """Scores of all would be 4 · 8192² · 4 bytes = 1 GB a copy; blocks have 4 · 512 · 640 of them."""
    spans = (PromptSpan(0, 8000, (8100, 8192)),)
    query, key, value, *_ = random_inputs(8192, dtype=torch.float32)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        packed_attention(query, key, value, spans, window=128, softcap=2.0).sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 2**25
