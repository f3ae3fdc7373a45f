"""Attention under an ordinary mask is `sdpa`, but that it knows caps and sinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from dynamic_dpo.engine.packed.masked_attention import masked_attention
from helpers_attention import dense_attention, largest_error, random_inputs

QUERY, KEY, VALUE, SINKS, _ = (
    tensor.detach() for tensor in random_inputs(9, widths=(8, 6), dtype=torch.float64)
)
CAUSAL = torch.ones(9, 9, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"mask": None}, {"is_causal": True}),
        ({"mask": None, "causal": False}, {}),
        ({"mask": CAUSAL[None, None]}, {"attn_mask": CAUSAL}),
        ({"mask": CAUSAL.log()[None, None], "scale": 0.2}, {"attn_mask": CAUSAL, "scale": 0.2}),
    ],
    ids=["causal", "not causal", "boolean mask", "added mask"],
)
def test_without_cap_and_sinks_it_is_sdpa(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    mask = ours.pop("mask")
    expected = scaled_dot_product_attention(QUERY, KEY, VALUE, enable_gqa=True, **theirs)
    torch.testing.assert_close(masked_attention(QUERY, KEY, VALUE, mask, **ours), expected)


def test_caps_and_sinks_are_those_of_brute_force() -> None:
    rule: dict[str, Any] = {"scale": 0.3, "softcap": 2.0, "sinks": SINKS}
    ours = masked_attention(QUERY, KEY, VALUE, CAUSAL[None, None], **rule)
    assert largest_error([ours], [dense_attention(QUERY, KEY, VALUE, CAUSAL, **rule)]) < 1e-14


def test_a_single_query_of_generation_sees_every_key() -> None:
    last = masked_attention(QUERY[:, :, -1:], KEY, VALUE, None)
    torch.testing.assert_close(last, masked_attention(QUERY, KEY, VALUE, None)[:, :, -1:])


def test_a_row_of_padding_is_no_nan() -> None:
    nothing = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    assert bool(masked_attention(QUERY, KEY, VALUE, nothing).isfinite().all())


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    torch.manual_seed(0)
    ones = torch.ones_like(VALUE)
    sums = masked_attention(QUERY, KEY, ones, None, dropout=0.5)
    assert float(sums.min()) < 0.5 < 1.5 < float(sums.max())
    average = torch.stack(
        [masked_attention(QUERY, KEY, ones, None, dropout=0.5).mean() for _ in range(200)]
    ).mean()
    assert float(average) == pytest.approx(1, abs=0.05)
