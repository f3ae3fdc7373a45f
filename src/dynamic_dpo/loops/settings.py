"""How rounds follow each other, as a user sets it: what is carried on, what is mixed in, when it is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynamic_dpo.utils.settings import check_settings, documented, setting


@documented()
@dataclass(frozen=True)
class LoopSettings:
    """How rounds follow each other.

    Raises:
        ConfigError: If a setting is out of its range.
    """

    rounds: int = setting(3, "Most rounds.", ge=1)
    output_dir: str = setting("runs/iterate", "Folder of everything: one folder a round, and the page.")
    reference: Literal["initial", "previous"] = setting(
        "initial",
        "Reference of every training: the model before the first round (or ref_name), or the one that the round "
        "before has trained.",
    )
    fresh_prompts: bool = setting(
        True,
        "Sample other prompts in every round, rollout.limit of them; false: the same in all.",
    )
    earlier_pairs: float = setting(
        0.0,
        "Pairs of earlier rounds that are trained on too, as a share of the round's own; 0: none.",
        ge=0,
    )
    beta: Literal["carry", "reset"] = setting(
        "carry",
        "Beta at the beginning of a round: where the round before has left it, or beta_update.beta_0.",
    )
    stop_when_even: bool = setting(
        True,
        "Stop after a round whose win rate against the model before it has 50 % in its interval, or below.",
    )
    kl_budget: float | None = setting(
        None,
        "Stop after a round whose model is so many nats per answer away from the first one; null: never. Measured on "
        "the evaluation's outputs, which must be sampled at temperature 1 and top_p 1.",
        gt=0,
    )
    launch: str | None = setting(
        None,
        "Words before the training's command, such as accelerate launch --num_processes 8; null: one process.",
    )

    def __post_init__(self) -> None:
        check_settings(self)
