"""FlexAttention on packed rows: what it answers, and how often it is compiled. All on a CPU.

PyTorch compiles only its forward pass for a CPU, and that without sinks. The backward pass and sinks run through its
own reference, with the check lifted that forbids gradients there, uncompiled and traced by ``aot_eager``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex
from torch.utils.checkpoint import checkpoint

from dynamic_dpo.engine.packed import flex
from dynamic_dpo.engine.packed.flex import GRAPHS_PER_KERNEL, flex_packed_attention
from helpers_attention import (
    FLEX_WARNINGS,
    by_brute_force,
    largest_error,
    no_compiler,
    output_and_gradients,
    random_inputs,
    random_spans,
)

RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads": {"groups": 2},
    "a window": {"window": 20, "groups": 2},
    "capped": {"softcap": 2.0},
    "sinks": {"sinks": True, "groups": 2},
    "narrow values": {"widths": (32, 16), "groups": 2},
    "all at once": {"softcap": 2.0, "window": 20, "sinks": True, "widths": (16, 32), "groups": 2},
}

pytestmark = pytest.mark.filterwarnings(*FLEX_WARNINGS)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    flex.compiled_kernel.cache_clear()
    counters.clear()
    yield
    torch._dynamo.reset()
    flex.compiled_kernel.cache_clear()


@pytest.fixture
def gradients_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def answers(spans: Any, *, backend: str | None, gradients: bool, **rule: Any) -> list[list[torch.Tensor]]:
    """What FlexAttention gives, and what brute force does: outputs and gradients to all inputs."""
    shapes = {"widths": (16, 16)} | {
        name: rule.pop(name) for name in ("heads", "groups", "widths") if name in rule
    }
    inputs = random_inputs(spans[-1].end, dtype=torch.float32, **shapes)

    def through_flex(*parts: Any, **options: Any) -> torch.Tensor:
        return flex_packed_attention(*parts, backend=backend, **options).transpose(1, 2)

    rule |= {"scale": 0.3, "gradients": gradients}
    return [output_and_gradients(attend, spans, inputs, **rule) for attend in (through_flex, by_brute_force)]


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_outputs_and_gradients_are_those_of_brute_force(rule: dict[str, Any]) -> None:
    spans = random_spans(random.Random(2), prompts=5, longest=60)
    assert largest_error(*answers(spans, backend=None, gradients=True, **rule)) < 1e-5


@no_compiler
def test_compiled_by_inductor_one_graph_answers_fifty_lengths_and_every_window() -> None:
    draw = random.Random(0)
    lengths: set[int] = set()
    while len(lengths) < 50:
        spans = random_spans(draw, prompts=draw.randint(1, 5), longest=150)
        lengths.add(spans[-1].end)
        rule = {"groups": 2, "widths": (16, 32), "softcap": 2.0, "window": [None, 20, 100][len(lengths) % 3]}
        assert largest_error(*answers(spans, backend="inductor", gradients=False, **rule)) < 1e-5
    assert min(lengths) < 128 < 512 < max(lengths)
    assert graphs() == 1 < GRAPHS_PER_KERNEL


@pytest.mark.usefixtures("gradients_on_a_cpu")
def test_fifty_lengths_with_and_without_gradients_are_two_graphs() -> None:
    draw = random.Random(1)
    lengths: set[int] = set()
    while len(lengths) < 50:
        spans = random_spans(draw, prompts=draw.randint(1, 4), longest=60)
        lengths.add(spans[-1].end)
        rule = RULES["all at once"] | {"window": [None, 20, 100][len(lengths) % 3]}
        for gradients in (True, False):
            assert largest_error(*answers(spans, backend="aot_eager", gradients=gradients, **rule)) < 1e-5
    assert graphs() == GRAPHS_PER_KERNEL == 2


@pytest.mark.usefixtures("gradients_on_a_cpu")
def test_frozen_projections_and_other_layouts_in_memory_are_no_graphs_of_their_own() -> None:
    spans = random_spans(random.Random(4), prompts=3, longest=90)
    length = spans[-1].end
    for frozen in range(4):
        *parts, _, _ = random_inputs(length, dtype=torch.float32, widths=(16, 16))
        parts = [part.requires_grad_(number != frozen) for number, part in enumerate(parts)]
        if frozen % 2:  # As projections come: heads within tokens.
            parts = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
        with torch.autocast("cpu", torch.bfloat16, enabled=frozen == 3):
            flex_packed_attention(*parts, spans, backend="aot_eager").sum().backward()
    assert graphs() == 1


@pytest.mark.usefixtures("gradients_on_a_cpu")
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_and_offloading_make_no_graphs_of_their_own(reentrant: bool) -> None:
    spans = random_spans(random.Random(8), prompts=3, longest=90)
    *parts, _, _ = random_inputs(spans[-1].end, dtype=torch.float32, widths=(16, 16))

    def loss(*parts: torch.Tensor) -> torch.Tensor:
        return flex_packed_attention(*parts, spans, backend="aot_eager").square().sum()

    expected = torch.autograd.grad(loss(*parts), parts)
    with torch.autograd.graph.save_on_cpu():
        offloaded = loss(*parts)
    offloaded.backward()
    recomputed = [part.detach().requires_grad_() for part in parts]
    checkpoint(loss, *recomputed, use_reentrant=reentrant).backward()
    for result in (parts, recomputed):
        assert largest_error([part.grad for part in result], expected) < 1e-6
    assert graphs() <= GRAPHS_PER_KERNEL


def test_kernels_do_not_use_up_each_others_graphs() -> None:
    spans = random_spans(random.Random(5), prompts=3, longest=50)
    with torch._dynamo.config.patch(recompile_limit=1):
        for heads in (1, 2, 3):
            shapes = {"heads": heads, "groups": heads}
            assert largest_error(*answers(spans, backend="aot_eager", gradients=False, **shapes)) < 1e-5
    assert graphs() == 3


def test_running_uncompiled_is_an_error() -> None:
    spans = random_spans(random.Random(6), prompts=2, longest=50)
    with (
        torch._dynamo.config.patch(disable=True),
        pytest.raises(RuntimeError, match=r"torch\.compile is switched off .* engine\.layout=plain"),
    ):
        answers(spans, backend="aot_eager", gradients=False)


@pytest.mark.usefixtures("gradients_on_a_cpu")
def test_reaching_dynamos_limit_is_an_error() -> None:
    spans = random_spans(random.Random(7), prompts=2, longest=50)
    with torch._dynamo.config.patch(recompile_limit=1):
        answers(spans, backend="aot_eager", gradients=False)
        with pytest.raises(RuntimeError, match=r"compiled anew more than 1 times.* engine\.layout=plain"):
            answers(spans, backend="aot_eager", gradients=True)
