"""Tabular softmax policies trained by a preference method, through the seam that language models are trained through.

A completion is one token, the action; its logits are a row of the table. Many seeds are trained side by side: their
tables are one tensor and share each forward pass, while every seed has a method object, and so a state, of its own.
Worlds and labels come from `world`; no method is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from experiments.bandit.world import Array, Measures, Pairs, World, measure, regret_and_kl
from torch import Tensor

from dynamic_dpo.methods.base import Control, LogitChunk, Needs, PairForward, PreferenceMethod


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast a policy is trained.

    Attributes:
        num_updates: Optimizer steps, each with one controller batch (scope ``step``).
        batch_size: Pairs in a step.
        learning_rate: Of Adam, constant.
        adam_beta2: Share of the old value in Adam's running mean of squared gradients, a step.
        num_points: How often beta and regret are recorded over the run; the last time after the last step.
    """

    num_updates: int = 800
    batch_size: int = 64
    learning_rate: float = 0.03
    adam_beta2: float = 0.999
    num_points: int = 20


class Trace(NamedTuple):
    """The points recorded over one seed's run: updates made, beta of the next loss, regret. Each [num_points]."""

    updates: list[int]
    betas: list[float]
    regrets: list[float]


class Trained(NamedTuple):
    """One seed's result: log-probabilities of the policy [X, A], what they are worth, and the trace."""

    policy_logps: Array
    measures: Measures
    trace: Trace


def batch_order(num_pairs: int, config: TrainingConfig, seed: int) -> np.ndarray:
    """Return the pairs of each step, epochs of one fresh permutation after the other. Shape [updates, batch]."""
    draw = np.random.default_rng([seed, 2])
    wanted = config.num_updates * config.batch_size
    epochs = [draw.permutation(num_pairs) for _ in range(-(-wanted // num_pairs))]
    return np.concatenate(epochs)[:wanted].reshape(config.num_updates, config.batch_size)


def train(
    methods: Sequence[PreferenceMethod],
    worlds: Sequence[World],
    data: Sequence[Pairs],
    seeds: Sequence[int],
    config: TrainingConfig,
    on_policies: Callable[[int, list[Array]], None] = lambda update, policies: None,
) -> list[Trained]:
    """Train one policy per seed, from the reference on.

    Args:
        methods: One object a seed, of one class and one set of settings (but for seeds of draws).
        worlds: One a seed, all of one shape.
        data: Labelled pairs, one set a seed, all of one size.
        seeds: Decide the order of the pairs.
        config: How long and how fast.
        on_policies: Told the updates made and the policies' log-probabilities at every recorded point.

    Returns:
        One result a seed, in the order given.
    """
    reference = torch.from_numpy(np.stack([world.reference_logps for world in worlds]))
    table = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=config.learning_rate, betas=(0.9, config.adam_beta2))
    rows, chosen, rejected = _laid_out(data, seeds, config, worlds[0].rewards.shape[0])
    record_at = {
        round(config.num_updates * (point + 1) / config.num_points) for point in range(config.num_points)
    }
    traces = [Trace([], [], []) for _ in seeds]
    for update in range(config.num_updates):
        forward = _forward(table, reference, rows[update], chosen[update], rejected[update], methods[0].needs)
        betas = _learn(methods, forward, optimizer)
        if update + 1 in record_at:
            on_policies(update + 1, _policies(table))
            for trace, logps, world, beta in zip(traces, _policies(table), worlds, betas, strict=True):
                trace.updates.append(update + 1)
                trace.betas.append(beta)
                trace.regrets.append(regret_and_kl(world, logps)[0])
    return [
        Trained(logps, measure(world, logps), trace)
        for logps, world, trace in zip(_policies(table), worlds, traces, strict=True)
    ]


def _laid_out(
    data: Sequence[Pairs], seeds: Sequence[int], config: TrainingConfig, num_contexts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row of the joint table, chosen and rejected action of each step's pairs. Shape [updates, S·B] each."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for number, (pairs, seed) in enumerate(zip(data, seeds, strict=True)):
        order = batch_order(len(pairs.contexts), config, seed)
        for part, values in zip(
            parts, (pairs.contexts + number * num_contexts, pairs.chosen, pairs.rejected), strict=True
        ):
            part.append(values[order])
    rows, chosen, rejected = (torch.from_numpy(np.concatenate(part, axis=1)) for part in parts)
    return rows, chosen, rejected


def _policies(table: Tensor) -> list[Array]:
    return list(table.detach().log_softmax(-1).numpy())


def _forward(
    table: Tensor, reference: Tensor, rows: Tensor, chosen: Tensor, rejected: Tensor, needs: Needs
) -> PairForward:
    """Return what the engine would give for one-token completions, and no more than ``needs`` asks for."""
    num_actions = table.shape[-1]
    logps = table.log_softmax(-1).view(-1)
    cells = (rows * num_actions + chosen, rows * num_actions + rejected)
    policy = [logps[cell] for cell in cells]
    ref = [reference.view(-1)[cell] if needs.reference else torch.zeros_like(policy[0]) for cell in cells]
    length = torch.ones_like(rows)
    with torch.no_grad():
        chunks = [
            LogitChunk(
                table.view(-1, num_actions)[rows],
                reference.view(-1, num_actions)[rows] if needs.live_reference else None,
                actions,
                own.detach(),
            )
            for actions, own in zip((chosen, rejected), policy, strict=True)
            if needs.statistics
        ]
        statistics = {
            statistic.name: torch.stack([statistic.compute(chunk) for chunk in chunks], dim=1)
            for statistic in needs.statistics
        }
    tokens = torch.stack(policy, dim=1).view(-1) if needs.token_logps else None
    owners = torch.arange(2 * len(rows)) if needs.token_logps else None
    return PairForward(
        policy_chosen_logps=policy[0],
        policy_rejected_logps=policy[1],
        ref_chosen_logps=ref[0],
        ref_rejected_logps=ref[1],
        chosen_lengths=length,
        rejected_lengths=length,
        statistics=statistics,
        token_logps=tokens,
        token_owners=owners,
    )


def _learn(
    methods: Sequence[PreferenceMethod], forward: PairForward, optimizer: torch.optim.Optimizer
) -> list[float]:
    """Make one step of all seeds, in the trainer's order; return the mean beta of each seed's losses."""
    evidence = methods[0].evidence(forward).view(len(methods), -1)
    remembers = bool(methods[0].state_dict())
    if remembers or methods[0].needs.batch_evidence:
        parts = _by_seed(forward.detached(), len(methods))
        seeds = zip(methods, evidence, parts, strict=True)
        control = _joined([method.couple(part, method.control(own)) for method, own, part in seeds])
    else:
        # Without a state nothing tells one object from another, and one call does for all.
        control = methods[0].control(evidence.reshape(-1))
    # Losses are a matter of settings and of the control, which are the same object's for all seeds.
    losses = methods[0].losses(forward, control)
    optimizer.zero_grad()
    # A seed's loss is the mean over its pairs. Tables share no entry, so that the sum over seeds mixes nothing.
    (losses.sum() / evidence.shape[1]).backward()  # type: ignore[no-untyped-call]
    if remembers:
        for method, part in zip(methods, evidence, strict=True):
            method.observe(part)
    optimizer.step()
    return control.beta.expand(control.weight.shape).view(len(methods), -1).mean(1).tolist()


def _by_seed(forward: PairForward, num_seeds: int) -> list[PairForward]:
    """Return the parts of detached values that belong to each seed, which lie one seed after the other."""

    def split(values: Tensor) -> list[Tensor]:
        return list(values.view(num_seeds, -1, *values.shape[1:]))

    tensors = {
        entry.name: split(value)
        for entry in fields(forward)
        if isinstance(value := getattr(forward, entry.name), Tensor)
    }
    statistics = {name: split(value) for name, value in forward.statistics.items()}
    return [
        replace(
            forward,
            statistics={name: parts[seed] for name, parts in statistics.items()},
            **{name: parts[seed] for name, parts in tensors.items()},
        )
        for seed in range(num_seeds)
    ]


def _joined(controls: Sequence[Control]) -> Control:
    """Return the seeds' controls as one, on their pairs one seed after the other."""
    betas = torch.cat([control.beta.expand(control.weight.shape) for control in controls])
    weights = torch.cat([control.weight for control in controls])
    offsets = [control.offset for control in controls if control.offset is not None]
    return Control(betas, weights, torch.cat(offsets) if offsets else None)
