"""WPO: DPO's loss, each pair weighted by how likely the policy is to write it (Zhou et al. 2024, arXiv:2406.11827).

The weight of a completion is the geometric mean over its tokens of ``p(token) / Σ_v p(v)²``, the policy's probability
of the token against what it would draw on average. It carries no gradient; there is no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamic_dpo.methods.base import Control, LogitChunk, Needs, PairForward, TokenStatistic
from dynamic_dpo.methods.building_blocks import FixedBetaMethod
from dynamic_dpo.methods.dpo import logistic_losses
from dynamic_dpo.methods.settings import beta_setting
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor

ALIGNED_LOGPS = "aligned_logps"


def aligned_logps(chunk: LogitChunk) -> Tensor:
    """Return ``log p(target) - log Σ_v p(v)²`` of each token (equation 2 of the paper). Shape [n]."""
    of_target = chunk.policy.gather(1, chunk.targets[:, None])[:, 0]
    normaliser = of_target - chunk.logps
    # log Σ p² = log Σ exp(2 z) - 2 log Σ exp(z)
    log_sum_of_squares = (2.0 * chunk.policy).logsumexp(-1) - 2.0 * normaliser
    return chunk.logps - log_sum_of_squares


ALIGNED = TokenStatistic(ALIGNED_LOGPS, aligned_logps)


def pair_weights(forward: PairForward) -> Tensor:
    """Return the product of both completions' weights, from the statistic `ALIGNED`. Shape [B]."""
    sums = forward.statistics[ALIGNED_LOGPS]
    chosen, rejected = sums[:, 0] / forward.chosen_lengths, sums[:, 1] / forward.rejected_lengths
    return (chosen + rejected).exp()


@dataclass(frozen=True)
class WPOConfig:
    """Settings of WPO: ``beta`` > 0, ``max_weight`` > 0 or ``None``."""

    beta: float = beta_setting()
    max_weight: float | None = setting(
        None, "Largest weight of a pair, 1 in the authors' release; null: none, as in TRL.", gt=0
    )

    def __post_init__(self) -> None:
        check_settings(self)


class WPO(FixedBetaMethod):
    """WPO with a constant beta."""

    name = "wpo"
    Settings = WPOConfig
    of_differences = True
    config: WPOConfig
    needs = Needs(statistics=(ALIGNED,))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the logistic losses times both completions' weights. Shape [B]."""
        weight = pair_weights(forward)
        if self.config.max_weight is not None:
            weight = weight.clamp(max=self.config.max_weight)
        return control.weight * weight * logistic_losses(forward.margins, control.beta)
