"""The likelihood of chosen answers alone: the loss of supervised fine-tuning, on the pairs of a preference run.

Without a reference and without a margin it is the usual second term beside a loss that has both (Pang et al. 2024,
"Iterative reasoning preference optimization", arXiv:2404.19733). It has no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from dynamic_dpo.methods.base import BuildContext, Control, Needs, PairForward, PreferenceMethod
from dynamic_dpo.methods.settings import Scope
from dynamic_dpo.utils.settings import check_settings, setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SFTMethodConfig:
    """Settings of the likelihood loss: what its mean is taken over."""

    mean_over: Literal["tokens", "answers"] = setting(
        "tokens",
        "What the loss is the mean over: all tokens of the controller batch's chosen answers, as in TRL, or answers, "
        "each of them the mean over its own tokens.",
    )

    def __post_init__(self) -> None:
        check_settings(self)


class SFT(PreferenceMethod):
    """Negative log-likelihood of the chosen answers, per token.

    Args:
        config: What the mean is taken over.
        beta: What logged rewards are multiplied by; the loss has none.
        scope: What a controller batch is.
    """

    name = "sft"
    Settings = SFTMethodConfig
    needs = Needs(reference=False, batch_lengths=True)
    why_not_steered: ClassVar[str] = "its loss has no beta"
    reads_margins = False
    of_differences = True  # It reads none.

    def __init__(
        self, config: SFTMethodConfig | None = None, *, beta: float = 0.1, scope: Scope = "micro"
    ) -> None:
        self.config = config or SFTMethodConfig()
        self._beta = beta
        self.scope = scope

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the loss with what the run's settings say of it."""
        return cls(SFTMethodConfig(**context.own), beta=context.beta_0, scope=context.scope)

    @property
    def beta(self) -> float:
        """The factor on logged rewards."""
        return self._beta

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return each chosen answer's negative log-likelihood over its own, or a mean answer's, tokens. Shape [B].

        With the mean over tokens the batch's mean of these is its mean over tokens. In evaluation each answer counts
        by itself, since there is no controller batch.
        """
        lengths: Tensor = forward.chosen_lengths
        if self.config.mean_over == "tokens" and forward.batch_lengths is not None:
            lengths = forward.batch_lengths[0]
        return control.weight * -forward.chosen_likelihood / lengths
