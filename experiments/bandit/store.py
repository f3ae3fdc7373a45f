"""The record of what was trained: a file that only grows, a line per arm and condition, found again by its settings.

A line holds the results of all seeds of its cell. An interrupted experiment goes on with the cells that are missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from experiments.bandit.arms import Arm, Condition
from experiments.bandit.training import TrainingConfig, train
from experiments.bandit.world import WorldConfig, draw_pairs, draw_world, flip_rates
from experiments.record import Record

# Raised when what a cell computes changes, so that no old line passes for a new one.
VERSION = 1


@dataclass(frozen=True)
class Cell:
    """One arm on one condition with all its seeds: what is trained side by side."""

    arm: Arm
    condition: Condition
    seeds: tuple[int, ...]
    world: WorldConfig
    training: TrainingConfig

    @property
    def key(self) -> str:
        """A hash of everything that decides the result."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def compute(self) -> dict[str, Any]:
        """Train and measure every seed, and return the cell's line; lists have one entry a seed."""
        config, condition = self.world, self.condition
        worlds = [draw_world(config, seed) for seed in self.seeds]
        rates = flip_rates(config, condition.noise, heterogeneous=condition.heterogeneous)
        data = [
            draw_pairs(world, condition.num_pairs, rates, seed)
            for world, seed in zip(worlds, self.seeds, strict=True)
        ]
        methods = [
            self.arm.build(beta_0=config.beta_0, batch_size=self.training.batch_size, seed=seed)
            for seed in self.seeds
        ]
        results = train(methods, worlds, data, self.seeds, self.training)
        traces = [result.trace for result in results]
        return {
            "key": self.key,
            **asdict(self),
            "regret": _rounded([result.measures.regret for result in results]),
            "kl": _rounded([result.measures.kl for result in results]),
            "accuracy": _rounded([result.measures.accuracy for result in results]),
            "last_beta": _rounded([trace.betas[-1] for trace in traces]),
            "updates": traces[0].updates,
            "median_beta": _rounded(np.median([trace.betas for trace in traces], axis=0)),
            "mean_regret": _rounded(np.mean([trace.regrets for trace in traces], axis=0)),
        }


class Store(Record):
    """The lines of an experiment's cells."""

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return the cell's line, computed and written if it is not there yet."""
        return self.line(cell.key, cell.compute)


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
