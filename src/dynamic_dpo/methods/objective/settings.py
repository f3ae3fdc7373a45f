"""The settings of a changed objective, and with which losses each of them goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.methods.wpo import ALIGNED_LOGPS
from dynamic_dpo.utils.settings import check_settings, documented, setting

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


@documented()
@dataclass(frozen=True)
class ObjectiveConfig:
    """What is changed about a loss; as it comes nothing is. Formulas and sources stand in ``docs/methods.md``."""

    nll_weight: float = setting(
        0.0,
        "Weight of the chosen answer's negative log-likelihood per token, added to each pair's loss (RPO).",
        key="objective.nll_weight",
        ge=0,
    )
    ld_alpha: float | None = setting(
        None,
        "Weight of the tokens by which a pair's longer answer exceeds the shorter one (LD-DPO); null: 1.",
        key="objective.ld_alpha",
        ge=0,
        le=1,
    )
    f_divergence: Divergence = setting(
        "reverse_kl",
        "Divergence from the reference that the loss stands for (f-DPO); reverse_kl: DPO's.",
        key="objective.f_divergence",
    )
    f_alpha: float = setting(
        0.5,
        "Order of alpha_divergence: 1 is reverse_kl, 0 is forward_kl.",
        key="objective.f_alpha",
        ge=-5,
        le=5,
    )
    use_weighting: bool = setting(
        False,
        "Multiply each pair's loss by how likely the policy is to write its answers, as method wpo does.",
        key="objective.use_weighting",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def tail_weight(self) -> float:
        """The weight of a longer answer's tail."""
        return 1.0 if self.ld_alpha is None else self.ld_alpha

    def problems_with(self, loss: PreferenceMethod | type[PreferenceMethod]) -> Iterator[str]:
        """Yield a sentence for each setting that does not go with ``loss``; each begins with the setting's name."""
        needs = loss.needs
        if self.f_divergence != "reverse_kl":
            if not loss.of_differences:
                yield (
                    f"f_divergence {self.f_divergence} does not go with {loss.name}, which reads more than the "
                    "difference of a pair's log-ratios: leave it at reverse_kl, or choose another loss"
                )
            elif not loss.reads_margins:
                yield f"f_divergence has no effect with {loss.name}, which reads no log-ratio: leave it out"
        if self.f_divergence != "alpha_divergence" and self.f_alpha != type(self).f_alpha:
            yield (
                f"f_alpha has no effect with f_divergence {self.f_divergence}: set alpha_divergence, or leave it at "
                f"{type(self).f_alpha}"
            )
        if self.tail_weight != 1.0:
            if needs.live_reference or needs.token_logps:
                yield (
                    f"ld_alpha does not go with {loss.name}, which reads single tokens, and these are not weighted: "
                    "leave it out, or choose another loss"
                )
            elif not loss.reads_margins:
                yield f"ld_alpha has no effect with {loss.name}, which counts every token alike: leave it out"
        if self.use_weighting:
            if any(statistic.name == ALIGNED_LOGPS for statistic in needs.statistics):
                yield f"use_weighting is what {loss.name} does already: leave it out, or choose another loss"
            elif needs.batch_evidence:
                yield (
                    f"use_weighting does not go with {loss.name}, whose pairs hang together in their batch: leave it "
                    "out, or choose another loss"
                )
