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

    weight: float = setting(
        1.0,
        "Weight of the method's own loss; it counts beside that of losses added to it.",
        key="objective.weight",
        gt=0,
    )
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

    def problems_with(self, *losses: PreferenceMethod | type[PreferenceMethod]) -> Iterator[str]:
        """Yield a sentence for each setting that does not go with one of the losses that are added up.

        A sentence begins with the setting's name.
        """
        if self.f_divergence != "alpha_divergence" and self.f_alpha != type(self).f_alpha:
            yield (
                f"f_alpha has no effect with f_divergence {self.f_divergence}: set alpha_divergence, or leave it at "
                f"{type(self).f_alpha}"
            )
        if not any(loss.reads_margins for loss in losses):
            names = " and ".join(loss.name for loss in losses)
            if self.f_divergence != "reverse_kl":
                yield f"f_divergence has no effect with {names}, which reads no log-ratio: leave it out"
            if self.tail_weight != 1.0:
                yield f"ld_alpha has no effect with {names}, which counts every token alike: leave it out"
        for loss in losses:
            yield from self._problems_with_one(loss)

    def _problems_with_one(self, loss: PreferenceMethod | type[PreferenceMethod]) -> Iterator[str]:
        needs = loss.needs
        if self.f_divergence != "reverse_kl" and not loss.of_differences:
            yield (
                f"f_divergence {self.f_divergence} does not go with {loss.name}, which reads more than the "
                "difference of a pair's log-ratios: leave it at reverse_kl, or choose another loss"
            )
        if self.tail_weight != 1.0 and (needs.live_reference or needs.token_logps):
            yield (
                f"ld_alpha does not go with {loss.name}, which reads single tokens, and these are not weighted: "
                "leave it out, or choose another loss"
            )
        if self.use_weighting and any(statistic.name == ALIGNED_LOGPS for statistic in needs.statistics):
            yield f"use_weighting is what {loss.name} does already: leave it out, or choose another loss"
        elif self.use_weighting and needs.batch_evidence:
            yield (
                f"use_weighting does not go with {loss.name}, whose pairs hang together in their batch: leave it "
                "out, or choose another loss"
            )
