"""What rounding explains, and no more: packed against plain rows, and faults that are to be seen."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rounding import arithmetic_of, rounding_tolerance
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from tiny import VOCAB, tiny_llama, tiny_qwen2

CPU = torch.device("cpu")
LENGTHS = (10, 30, 100, 300, 1000)


def pairs_of(num_tokens: int, *, count: int = 4) -> PairBatch:
    draw = random.Random(num_tokens)

    def texts(length: int) -> list[list[int]]:
        return [[draw.randrange(4, VOCAB) for _ in range(length)] for _ in range(count)]

    return PairBatch(texts(20), texts(num_tokens // 2), texts(num_tokens // 2), range(count))


@torch.no_grad()
def margins(model: Any, pairs: PairBatch, *, layout: str) -> torch.Tensor:
    logps = PairScorer(model, EngineConfig(layout=layout)).score(model.eval(), pairs)  # type: ignore[arg-type]
    return (logps.chosen - logps.rejected).double()


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16", "float16", "autocast"])
def test_two_layouts_agree_within_the_tolerance_at_every_length(make: Any, arithmetic: str) -> None:
    weights = torch.float32 if arithmetic == "autocast" else getattr(torch, arithmetic)
    context = torch.autocast("cpu", dtype=torch.bfloat16) if arithmetic == "autocast" else nullcontext()
    with context:
        for length in LENGTHS:
            pairs = pairs_of(length)
            packed, plain = (margins(make().to(weights), pairs, layout=name) for name in ("packed", "plain"))
            allowed = rounding_tolerance(torch.full((4,), length), arithmetic_of(weights, CPU))
            assert bool(((packed - plain).abs() <= allowed).all()), length
            if arithmetic != "float32":  # Not so wide that it would say nothing.
                assert float(((packed - plain).abs() / allowed).max()) > 0.01, length


@pytest.mark.parametrize("length", LENGTHS)
def test_a_reference_of_another_precision_is_no_rounding_of_float32(length: int) -> None:
    pairs = pairs_of(length)
    there = margins(tiny_llama(), pairs, layout="plain")
    apart = (there - margins(tiny_llama(dtype=torch.bfloat16), pairs, layout="plain")).abs()
    assert float((apart / rounding_tolerance(torch.full((4,), length), torch.float32)).max()) > 1


@pytest.mark.parametrize("length", LENGTHS)
def test_another_reference_is_no_rounding_of_bfloat16(length: int) -> None:
    pairs = pairs_of(length)
    other = tiny_llama()
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            torch.manual_seed(number)
            parameter += 0.1 * parameter.std(correction=0) * torch.randn_like(parameter)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart = (margins(tiny_llama(), pairs, layout="plain") - margins(other, pairs, layout="plain")).abs()
    assert float((apart / rounding_tolerance(torch.full((4,), length), torch.bfloat16)).max()) > 1


def test_it_grows_as_a_random_walk_and_in_proportion_to_the_precision() -> None:
    tokens = torch.tensor([25, 100, 2500])
    bfloat16, float16 = (rounding_tolerance(tokens, dtype) for dtype in (torch.bfloat16, torch.float16))
    assert (bfloat16 / bfloat16[0]).tolist() == pytest.approx([1, 2, 10], rel=5e-3)
    assert bfloat16[1].item() == pytest.approx(10 * (32 * 2**-7 + 1e-3), rel=1e-3)
    assert (bfloat16 / float16).tolist() == pytest.approx([7.78] * 3, rel=1e-2)


def test_the_arithmetic_is_the_autocasts_where_there_is_one() -> None:
    assert arithmetic_of(torch.float32, CPU) == torch.float32
    assert arithmetic_of(torch.bfloat16, CPU) == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert arithmetic_of(torch.float32, CPU) == torch.bfloat16
