"""What is compared: settings of ``train-dpo`` over those that all runs share, and what becomes of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Of the grid below, by the held-out loss of DPO at beta .1 on the tuning seed.
LEARNING_RATES = (1e-5, 2e-5, 5e-5)
BETAS = (0.01, 0.03, 0.1, 0.3)
GIVEN_BETA = 0.1
# An evaluation after every fifth of the 40 steps, where held-out pairs decide.
EVAL_STEPS = 5


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: What tables call it.
        settings: Dotted keys of ``train-dpo`` with their values.
        strength: Whether the model that is measured is the one ``dynamic-dpo strength`` chooses by held-out loss.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    strength: bool = False


def dpo(beta: float, **more: Any) -> dict[str, Any]:
    """Return the settings of DPO at a beta."""
    return {"method.name": "dpo", "beta_update.beta_0": beta, **more}


def risk(mode: str, **more: Any) -> dict[str, Any]:
    """Return the settings of a risk-controlled beta, for a run of 80 updates as the quickstart has them."""
    return {
        "method.name": "risk",
        "method.mode": mode,
        "risk_test.beta_warmup": 8,
        "beta_update.beta_0": GIVEN_BETA,
        "beta_update.alpha": 0.02,
        **more,
    }


CONSTANT = {"dpo_training.lr_scheduler_type": "constant"}
KEEP_BEST = {
    "dpo_training.keep_best": {"metric": "eval_loss"},
    "dpo_training.eval_steps": EVAL_STEPS,
}

GIVEN = "DPO"
DPO_GRID = tuple(Arm(GIVEN if beta == GIVEN_BETA else f"DPO, beta {beta:g}", dpo(beta)) for beta in BETAS)
AFTER_TRAINING = (
    # Right behind plain DPO, whose run it takes.
    Arm("DPO, strength", dpo(GIVEN_BETA), strength=True),
    Arm("DPO, keep_best", dpo(GIVEN_BETA) | KEEP_BEST),
)
ARMS = (
    *DPO_GRID,
    Arm("DPO, constant rate", dpo(GIVEN_BETA) | CONSTANT),
    *AFTER_TRAINING,
    Arm("risk, paper", risk("paper")),
    Arm("risk, exact", risk("exact", **{"method.window_multiple": 4})),
    Arm("risk, target", risk("target", **{"risk_target.margin_budget": 10.0})),
    Arm("schedule", {"method.name": "schedule", "beta_update.beta_0": GIVEN_BETA, "beta_update.alpha": 0.02}),
    Arm("ε-DPO", {"method.name": "epsilon_dpo", "beta_update.beta_0": GIVEN_BETA}),
    Arm("β-DPO", {"method.name": "beta_dpo", "beta_update.beta_0": GIVEN_BETA}),
    Arm("DPO + NLL", dpo(GIVEN_BETA, **{"objective.nll_weight": 0.2})),
)
