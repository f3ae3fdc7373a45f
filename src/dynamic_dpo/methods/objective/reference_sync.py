"""The settings of a reference that follows the policy: TR-DPO (Gorbatovski et al. 2024, arXiv:2404.09656)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.utils.settings import check_settings, documented, setting


@documented()
@dataclass(frozen=True)
class ReferenceSync:
    """How a reference follows the policy; as it comes it stays where it was."""

    steps: int | None = setting(
        None,
        "Optimizer steps after which the reference is moved towards the policy (TR-DPO); null: it stays.",
        key="reference_sync.steps",
        ge=1,
    )
    mixup_alpha: float = setting(
        0.6,
        "Share of the policy's weights in the moved reference; 1: a copy of the policy.",
        key="reference_sync.mixup_alpha",
        gt=0,
        le=1,
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def problems(
        self, losses: Sequence[PreferenceMethod | type[PreferenceMethod]], *, has_adapter: bool
    ) -> Iterator[str]:
        """Yield a sentence for each setting that has no effect or that the run cannot follow.

        Args:
            losses: The losses of the run.
            has_adapter: Whether adapters alone are trained.
        """
        if self.steps is None:
            if self.mixup_alpha != type(self).mixup_alpha:
                yield "mixup_alpha has no effect where the reference stays: set steps, or leave it out"
            return
        if has_adapter:
            yield (
                "steps moves a reference of its own, and with adapters the reference is the model without them: "
                "train all weights, or leave it out"
            )
        if not any(loss.needs.reference for loss in losses):
            yield "steps has no effect on a loss that needs no reference: leave it out, or choose another loss"
