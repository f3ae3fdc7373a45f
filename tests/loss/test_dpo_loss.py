"""Log-probabilities, margins and the DPO loss, against numbers worked by hand and a slow loop."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamic_dpo.loss import compute_and_log_model_margin, compute_log_prob, dpo_loss, margin_compute

nats = st.floats(-500, 500, width=32)
four_logps = st.lists(st.tuples(nats, nats, nats, nats), min_size=1, max_size=8)


@pytest.fixture(autouse=True)
def _subnormal_numbers() -> None:
    # A trainer in an earlier test has set the process to flush them; drawing floats needs them.
    torch.set_flush_denormal(False)


def columns(rows: list[tuple[float, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True)]


def test_a_sequence_sums_the_log_probabilities_of_its_labelled_tokens_one_position_on() -> None:
    # Two tokens; position 0 gives odds 3:1 to token 1, position 1 odds 1:1, position 2 predicts nothing.
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0], [9.0, -9.0]]], dtype=torch.float64)
    both = compute_log_prob(logits, torch.tensor([[0, 1, 0]]))
    second = compute_log_prob(logits, torch.tensor([[0, -100, 0]]))
    assert both.item() == pytest.approx(math.log(3 / 4) + math.log(1 / 2), abs=1e-12)
    assert second.item() == pytest.approx(math.log(1 / 2), abs=1e-12)


def test_log_probabilities_equal_a_loop_over_positions() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11, dtype=torch.float64), torch.randint(0, 11, (3, 7))
    labels[0, :4] = -100
    labels[2, 5:] = -100
    expected = []
    for row, wanted in zip(logits, labels, strict=True):
        total = 0.0
        for position in range(1, 7):
            if wanted[position] != -100:
                total += float(row[position - 1].log_softmax(-1)[wanted[position]])
        expected.append(total)
    assert compute_log_prob(logits, labels).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_row_without_labels_has_log_probability_zero_and_no_gradient() -> None:
    logits = torch.randn(1, 4, 5, requires_grad=True)
    logp = compute_log_prob(logits, torch.full((1, 4), -100))
    logp.sum().backward()
    assert logp.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_bfloat16_logits_are_summed_in_float32() -> None:
    # 600 tokens at odds 1:1 make 415.888 nats; bfloat16 could only say 416 or 414.
    logp = compute_log_prob(
        torch.zeros(1, 601, 2, dtype=torch.bfloat16), torch.ones(1, 601, dtype=torch.long)
    )
    assert logp.dtype == torch.float32
    assert logp.item() == pytest.approx(-600 * math.log(2), rel=1e-6)


def test_mismatched_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4\).*\(1, 3\).*\(1, 2\)"):
        compute_log_prob(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long))


def test_a_margin_is_the_difference_of_log_ratios_without_beta() -> None:
    # chosen: -2 against -3 is +1; rejected: -5 against -4 is -1.
    assert margin_compute(*columns([(-2.0, -5.0, -3.0, -4.0)])).tolist() == [2.0]


@settings(deadline=None, max_examples=60)
@given(rows=four_logps)
def test_a_swapped_pair_negates_its_margin(rows: list[tuple[float, ...]]) -> None:
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = columns(rows)
    margin = margin_compute(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    swapped = margin_compute(policy_rejected, policy_chosen, ref_rejected, ref_chosen)
    assert torch.equal(swapped, -margin)


@settings(deadline=None, max_examples=60)
@given(rows=four_logps, beta=st.floats(0.001, 5))
def test_the_loss_is_minus_log_sigmoid_of_beta_times_margin(
    rows: list[tuple[float, ...]], beta: float
) -> None:
    result = dpo_loss(*columns(rows, torch.float64), beta)
    for loss, (pc, pr, rc, rr) in zip(result.losses.tolist(), rows, strict=True):
        x = beta * ((pc - pr) - (rc - rr))
        # log(1 + e^-x), written so that neither branch overflows.
        expected = math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))
        assert loss == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_rewards_are_beta_times_the_log_ratios_and_carry_no_gradient() -> None:
    policy = torch.tensor([-2.0], requires_grad=True)
    result = dpo_loss(policy, 2.5 * policy, torch.tensor([-3.0]), torch.tensor([-4.0]), beta=0.5)
    assert result.chosen_rewards.tolist() == [0.5]  # .5 × (-2 + 3)
    assert result.rejected_rewards.tolist() == [-0.5]  # .5 × (-5 + 4)
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad
    assert result.losses.requires_grad


def test_rewards_of_bfloat16_log_probabilities_are_formed_in_float32() -> None:
    chosen, reference = (torch.tensor([x], dtype=torch.bfloat16) for x in (-200.0, -0.5))
    result = dpo_loss(chosen, chosen, reference, reference, beta=1.0)
    assert result.chosen_rewards.dtype == torch.float32
    assert result.chosen_rewards.item() == -199.5


def test_a_beta_per_pair_gives_each_pair_its_own_loss() -> None:
    rows = [(1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)]
    losses = dpo_loss(*columns(rows), torch.tensor([0.1, 2.0])).losses
    alone = [dpo_loss(*columns(rows[:1]), beta).losses.item() for beta in (0.1, 2.0)]
    assert losses.tolist() == pytest.approx(alone, rel=1e-6)


def test_the_gradient_is_minus_beta_times_sigmoid_of_the_negative_reward_margin() -> None:
    chosen = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    dpo_loss(chosen, zero, zero, zero, beta=0.5).losses.backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.5 / (1 + math.exp(1.5)), rel=1e-12)


def test_logged_margins_leave_the_array_and_one_line_of_statistics(tmp_path: Path) -> None:
    record = compute_and_log_model_margin(
        torch.tensor([-1.0, 0.0, 1.0, 4.0]), tmp_path / "epoch_000", 0, 7, tmp_path / "logs" / "m.jsonl"
    )
    assert record == {
        "epoch": 0,
        "step": 7,
        "batch_size": 4,
        "mean": 1.0,
        "std": pytest.approx(math.sqrt(3.5)),  # squared deviations 4, 1, 0, 9
        "min": -1.0,
        "p10": pytest.approx(-0.7),
        "median": 0.5,
        "p90": pytest.approx(3.1),
        "max": 4.0,
        "pos_frac": 0.5,
        "npy": str(tmp_path / "epoch_000" / "step_00007.npy"),
        "sample": [-1.0, 0.0, 1.0, 4.0],
    }
    (line,) = (tmp_path / "logs" / "m.jsonl").read_text().splitlines()
    assert json.loads(line) == record
    assert np.load(str(record["npy"])).tolist() == [-1.0, 0.0, 1.0, 4.0]


def test_the_margin_log_grows_line_by_line_and_its_sample_is_bounded(tmp_path: Path) -> None:
    for step in (1, 2):
        compute_and_log_model_margin(
            torch.arange(5.0), tmp_path, 0, step, tmp_path / "m.jsonl", sample_size=2
        )
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["sample"] == [0.0, 1.0]


def test_non_finite_margins_stay_in_the_array_and_out_of_the_statistics(tmp_path: Path) -> None:
    margins = torch.tensor([math.nan, 2.0, math.inf])
    record = compute_and_log_model_margin(margins, tmp_path, 0, 1, tmp_path / "m.jsonl")
    assert (record["mean"], record["max"], record["batch_size"]) == (2.0, 2.0, 3)
    assert record["sample"] == [None, 2.0, None]
    assert np.isnan(np.load(str(record["npy"]))[0])
    nothing = compute_and_log_model_margin(margins[:1], tmp_path, 0, 2, tmp_path / "m.jsonl")
    assert nothing["mean"] is None
    assert "NaN" not in (tmp_path / "m.jsonl").read_text()


def test_logging_no_margins_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        compute_and_log_model_margin(torch.zeros(0), tmp_path, 0, 1, tmp_path / "m.jsonl")
