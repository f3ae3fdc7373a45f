"""One optimizer step on one rank: controller batches, their micro-batches, gradients, and what the method learns.

The order is the paper's: beta from before, losses and gradients of a controller batch, then its margins, of all
ranks, to the controller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.rows import PairBatch, scored_lengths
from dynamic_dpo.methods.base import Control, PreferenceMethod
from dynamic_dpo.trainers.guards import MarginGuard
from dynamic_dpo.trainers.metrics import (
    PAIR_METRICS,
    MetricSums,
    gather_ragged,
    pair_metrics,
    token_logratios,
)
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.sharding import most_of_ranks
from dynamic_dpo.trainers.whole_batch import gathered, values_of
from dynamic_dpo.utils.process import FreedMemory

# Told of each controller update: all ranks' margins (CPU), this rank's, the update's number, the method's reading.
OnUpdate = Callable[[Tensor, Tensor, int, dict[str, float]], None]


class WholeStep:
    """Runs optimizer steps and counts what they did.

    Args:
        method: Gives beta and losses, and learns.
        policy: Scores pairs.
        accelerator: The trainer's accelerator.
        guard: Checks the margins before the method learns from them.
        device_batch: Pairs of a controller batch on one rank in scope ``micro``.
        is_sharded: Whether weights are spread over the ranks, which must then make the same passes.
        pair_sets: Name of each set of a mixture to its first row.

    Attributes:
        metrics: Sums since the last log entry.
        num_updates: Controller updates so far.
        num_pairs: Pairs trained on so far, over all ranks.
        num_tokens: Tokens of both sequences of these pairs; a prompt counts with each answer, as in TRL's log.
    """

    def __init__(
        self,
        *,
        method: PreferenceMethod,
        policy: PolicyAndReference,
        accelerator: Any,
        guard: MarginGuard,
        device_batch: int,
        is_sharded: bool,
        pair_sets: Mapping[str, int] | None = None,
    ) -> None:
        self.method = method
        self.policy = policy
        self.accelerator = accelerator
        self.guard = guard
        self.device_batch = device_batch
        self.is_sharded = is_sharded
        self.metrics = MetricSums(pair_sets)
        self.freed_memory = FreedMemory()
        self.num_updates = 0
        self.num_pairs = 0
        self.num_tokens = 0

    def run(self, model: nn.Module, pairs: PairBatch, *, step: int, on_update: OnUpdate) -> Tensor:
        """Form the gradient of one optimizer step and let the method learn from its controller batches.

        Args:
            model: The policy, wrapped as the accelerator wants it.
            pairs: This rank's pairs of the step, maybe none.
            step: Optimizer steps made so far.
            on_update: Told of each controller update.

        Returns:
            What this rank adds to the mean loss of the step's pairs: its losses over the pairs that a rank has on
            average, detached. Shape [].
        """
        self.guard.begin_step()
        per_rank, num_tokens = self._counts_of_ranks(pairs)
        # Ranks' gradients are averaged: divided by the average, each pair of the step weighs the same.
        average = sum(per_rank) / len(per_rank)
        size = max(per_rank) if self.method.scope == "step" else self.device_batch
        starts = range(0, max(per_rank), size)
        total = torch.zeros((), device=self.accelerator.device)
        for start in starts:
            batch = pairs.select(range(start, min(start + size, len(pairs))))
            loss_sum, seen = self._controller_batch(
                model, batch, num_pairs=average, ends_step=start == starts[-1]
            )
            total = total + loss_sum
            self._observe(seen, batch, step, on_update)
        if self.guard.step_is_bad:
            # A NaN in one row is a NaN in every gradient: the step is left out, on every rank alike.
            model.zero_grad()
        self.num_pairs += sum(per_rank)
        self.num_tokens += num_tokens
        return (total / average).float()

    def _controller_batch(
        self, model: nn.Module, batch: PairBatch, *, num_pairs: float, ends_step: bool
    ) -> tuple[Tensor, Tensor]:
        """Run forward and backward over one controller batch; return loss sum, and margins and evidence [B, 2]."""
        method = self.method
        plan = self._plan(batch)
        lengths = self._batch_lengths(batch) if method.needs.batch_lengths else None
        control = None
        if method.needs.batch_evidence:
            control = self._control_before_loss(model, batch, plan, lengths)
        seen, loss_sum = [self._no_values(2)], torch.zeros((), device=self.accelerator.device)
        for number, microbatch in enumerate(plan):
            with self._gradient_sync(model, last=ends_step and number == len(plan) - 1):
                if not microbatch:
                    with self.accelerator.autocast():
                        nothing = self.policy.idle(model, method.needs)
                    self.accelerator.backward(nothing)
                    width = len(PAIR_METRICS) + (self.policy.scorer.router is not None)
                    self.metrics.add_pairs(nothing.new_zeros(0, width))
                    if method.needs.reference:
                        self.metrics.add_ratios(nothing.new_zeros(0, 2))
                    continue
                with self.accelerator.autocast():
                    forward = self.policy.forward(model, batch.select(microbatch), method.needs)
                forward = replace(forward, batch_lengths=lengths)
                evidence = method.evidence(forward)
                decided = (
                    control.select(torch.tensor(microbatch, device=evidence.device))
                    if control
                    else method.control(evidence)
                )
                losses = method.losses(forward, decided)
                if forward.router_loss is not None and self.policy.scorer.router:
                    # Each pair bears its micro-batch's, so that the step's is their mean by pairs.
                    losses = losses + self.policy.scorer.router.coefficient * forward.router_loss
                self.accelerator.backward(losses.sum() / num_pairs)
            seen.append(torch.stack([forward.margins.detach(), evidence], dim=1))
            loss_sum = loss_sum + losses.detach().sum()
            self.metrics.add_pairs(pair_metrics(forward, decided))
            if method.needs.reference:
                self.metrics.add_ratios(token_logratios(forward))
            self.freed_memory.check()
        return loss_sum, in_order(seen, plan)

    def _control_before_loss(
        self, model: nn.Module, batch: PairBatch, plan: list[list[int]], lengths: Tensor | None
    ) -> Control:
        """Score the whole controller batch without gradients and let the method decide on all ranks' pairs."""
        method, names = self.method, [statistic.name for statistic in self.method.needs.statistics]
        seen = [self._no_values(7 + 2 * len(names)).double()]
        with torch.no_grad(), self.accelerator.autocast():
            for part in plan:
                if part:
                    forward = self.policy.forward(model, batch.select(part), method.needs)
                    seen.append(values_of(forward, names))
                elif self.is_sharded:
                    self.policy.idle(model, method.needs)
        mine = in_order(seen, plan)
        whole, first = gathered(self.accelerator, mine, names, self._no_values().dtype)
        whole = replace(whole, batch_lengths=lengths)
        control = method.couple(whole, method.control(method.evidence(whole)))
        return control.select(torch.arange(first, first + len(mine), device=mine.device))

    def _batch_lengths(self, batch: PairBatch) -> Tensor:
        """Return the mean scored tokens, chosen and rejected, of all ranks' pairs of a controller batch."""
        chosen, rejected = map(sum, zip((0, 0), *scored_lengths(batch), strict=True))
        counts = [len(batch), chosen, rejected]
        table = torch.tensor([counts], dtype=torch.float64, device=self.accelerator.device)
        sums = gather_ragged(self.accelerator, table).sum(0)
        return sums[1:] / sums[0]

    def _no_values(self, *width: int) -> Tensor:
        """Return what a rank without pairs has seen, in the log-probabilities' dtype. Shape [0, ...]."""
        dtype = torch.promote_types(self.policy.scorer.dtype, torch.float32)
        return torch.zeros(0, *width, dtype=dtype, device=self.accelerator.device)

    def _counts_of_ranks(self, pairs: PairBatch) -> tuple[list[int], int]:
        """Return each rank's pairs of the step, and the tokens of all of them."""
        parts = zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
        mine = [len(pairs), sum(2 * len(prompt) + len(yes) + len(no) for prompt, yes, no in parts)]
        if self.accelerator.num_processes == 1:
            return mine[:1], mine[1]
        counts = self.accelerator.gather(torch.tensor([mine], device=self.accelerator.device))
        return counts[:, 0].tolist(), int(counts[:, 1].sum())

    def _plan(self, batch: PairBatch) -> list[list[int]]:
        """Cut a controller batch into micro-batches; one that holds no pair stands for a pass of none."""
        plan = self.policy.scorer.plan(batch)
        if not self.is_sharded:
            return plan or [[]]  # Gradients are exchanged in a pass.
        at_least = most_of_ranks(self.accelerator, len(plan))
        plan = self.policy.scorer.plan(batch, at_least=at_least)
        return plan + [[]] * (at_least - len(plan))

    def _gradient_sync(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        # Ranks exchange gradients once a step, with its last micro-batch. Sharded gradients are summed into shards
        # with every one: until then each rank would keep those of all weights.
        together = last or self.is_sharded
        context: AbstractContextManager[Any] = nullcontext() if together else self.accelerator.no_sync(model)
        return context

    def _observe(self, seen: Tensor, batch: PairBatch, step: int, on_update: OnUpdate) -> None:
        """Hand the method one controller batch, all ranks' pairs; ``seen`` is margins and evidence, [B, 2]."""
        tokens = [sum(of_pair) for of_pair in scored_lengths(batch)]
        facts = torch.tensor([list(batch.rows), tokens], dtype=torch.float64, device=seen.device)
        # One gather and one copy to the host an update; float64 holds row numbers and float32 values exactly.
        table = torch.cat([seen.double(), facts.T], dim=1)
        gathered = gather_ragged(self.accelerator, table).cpu()
        margins, evidence = (gathered[:, column].to(seen.dtype) for column in range(2))
        self.guard.check_margins(
            margins, gathered[:, 2].long().tolist(), num_tokens=gathered[:, 3].long(), step=step
        )
        reading = self.method.observe(evidence)
        self.num_updates += 1
        self.metrics.add_update(margins, gathered[:, 2].long(), reading)
        on_update(margins, seen[:, 0], self.num_updates, reading)


def in_order(parts: Sequence[Tensor], plan: Sequence[Sequence[int]]) -> Tensor:
    """Undo a plan's sorting: values by micro-batch back to the batch's own order. Shape [B, ...].

    Micro-batches without pairs have no values.

    Example:
        >>> in_order([torch.tensor([3.0, 1.0]), torch.tensor([2.0])], [[2, 0], [1]])
        tensor([1., 2., 3.])
    """
    values = torch.cat(list(parts))
    order = torch.tensor([index for part in plan for index in part], dtype=torch.long, device=values.device)
    return torch.empty_like(values).index_copy(0, order, values)
