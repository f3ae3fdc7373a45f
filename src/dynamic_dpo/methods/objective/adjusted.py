"""A method whose loss is changed: terms added, pairs weighted, log-ratios replaced. It decides as the method decides.

The method sees a pair's values already rewritten and knows nothing of it; its state, its control and its evidence are
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import Control, PairForward, PreferenceMethod, State
from dynamic_dpo.methods.objective.divergences import score_of
from dynamic_dpo.methods.objective.settings import ObjectiveConfig
from dynamic_dpo.methods.wpo import ALIGNED, pair_weights

if TYPE_CHECKING:
    from torch import Tensor


def adjusted(loss: PreferenceMethod, config: ObjectiveConfig) -> PreferenceMethod:
    """Return ``loss`` changed as ``config`` says; itself where that is nothing.

    Raises:
        ConfigError: If a setting does not go with the loss.
    """
    return loss if config == ObjectiveConfig() else Adjusted(loss, config)


class Adjusted(PreferenceMethod):
    """The method ``loss`` with another objective; it goes by that method's name.

    Args:
        loss: The method whose loss is changed.
        config: What is changed.

    Raises:
        ConfigError: If a setting does not go with the loss.
    """

    def __init__(self, loss: PreferenceMethod, config: ObjectiveConfig) -> None:
        for problem in config.problems_with(loss):
            raise ConfigError(problem)
        self.loss = loss
        self.config = config
        self.name = loss.name  # type: ignore[misc]
        self.why_not_steered = loss.why_not_steered  # type: ignore[misc]
        self.reads_margins = loss.reads_margins  # type: ignore[misc]
        self.of_differences = loss.of_differences  # type: ignore[misc]
        self.scope = loss.scope
        statistics = loss.needs.statistics
        if config.use_weighting:
            statistics = (*statistics, ALIGNED)
        self.needs = replace(loss.needs, statistics=statistics, tail_weight=config.tail_weight)

    @property
    def beta(self) -> float:
        """The method's beta."""
        return self.loss.beta

    @property
    def stop_reason(self) -> str | None:  # type: ignore[override]
        """Why the method wants the run to end, if it does."""
        return self.loss.stop_reason

    def evidence(self, forward: PairForward) -> Tensor:
        """Return the method's evidence on the rewritten values, detached. Shape [B]."""
        return self.loss.evidence(self._rewritten(forward))

    def control(self, evidence: Tensor) -> Control:
        """Return what the method decides."""
        return self.loss.control(evidence)

    def control_in_evaluation(self, evidence: Tensor) -> Control:
        """Return what the method decides for pairs that are only evaluated."""
        return self.loss.control_in_evaluation(evidence)

    def couple(self, forward: PairForward, control: Control) -> Control:
        """Return ``control`` with what the method's losses take from the rest of the rewritten batch."""
        return self.loss.couple(self._rewritten(forward), control)

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the method's losses on the rewritten values, with what is added and weighted. Shape [B]."""
        losses = self.loss.losses(self._rewritten(forward), control)
        if self.config.nll_weight:
            per_token = -forward.chosen_likelihood / forward.chosen_lengths
            losses = losses + self.config.nll_weight * control.weight * per_token
        if self.config.use_weighting:
            losses = pair_weights(forward).detach() * losses
        return losses

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Let the method learn."""
        return self.loss.observe(evidence)

    def state_dict(self) -> State:
        """Return the method's state."""
        return self.loss.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the method's state."""
        self.loss.load_state_dict(state)

    def summary(self) -> dict[str, Any]:
        """Return the method's summary and the settings that are not as they come."""
        plain = asdict(ObjectiveConfig())
        changed = {key: value for key, value in asdict(self.config).items() if value != plain[key]}
        return {**self.loss.summary(), "objective": changed}

    def start_notes(self, updates: int) -> list[str]:
        """Return what the method has to say before a run."""
        return self.loss.start_notes(updates)

    def _rewritten(self, forward: PairForward) -> PairForward:
        """Put the divergence's scores in the place of log-ratios; over a reference of zeros none is rounded."""
        if self.config.f_divergence == "reverse_kl":
            return forward
        chosen, rejected = (
            score_of(logratios, self.config.f_divergence, self.config.f_alpha)
            for logratios in (forward.chosen_logratios, forward.rejected_logratios)
        )
        return replace(
            forward,
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            ref_chosen_logps=0.0 * forward.ref_chosen_logps,
            ref_rejected_logps=0.0 * forward.ref_rejected_logps,
            whole_chosen_logps=forward.chosen_likelihood,
        )
