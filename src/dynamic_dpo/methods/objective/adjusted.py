"""A method whose loss is changed: terms added, pairs weighted, log-ratios replaced. It decides as the method decides.

The method sees a pair's values already rewritten and knows nothing of it; its state, its control and its evidence are
its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import Control, Needs, PairForward, PreferenceMethod, State
from dynamic_dpo.methods.objective.divergences import score_of
from dynamic_dpo.methods.objective.settings import ObjectiveConfig
from dynamic_dpo.methods.wpo import ALIGNED, pair_weights

if TYPE_CHECKING:
    from torch import Tensor


# A loss and its weight in a sum.
Weighted = tuple[PreferenceMethod, float]


def adjusted(
    loss: PreferenceMethod, config: ObjectiveConfig, added: Sequence[Weighted] = ()
) -> PreferenceMethod:
    """Return ``loss`` changed as ``config`` says, ``added`` to it; itself where that is nothing.

    Raises:
        ConfigError: If a setting does not go with the loss, or a loss cannot be added.
    """
    return loss if config == ObjectiveConfig() and not added else Adjusted(loss, config, added)


def why_not_added(loss: PreferenceMethod | type[PreferenceMethod]) -> str:
    """Return why ``loss`` cannot be added to another one; empty where it can."""
    # A loss that reads no margin has no beta either, and needs none.
    return loss.why_not_steered if loss.reads_margins else ""


class Adjusted(PreferenceMethod):
    """The method ``loss`` with another objective; it goes by that method's name.

    Args:
        loss: The method whose loss is changed.
        config: What is changed.
        added: Further losses with their weights, which take their beta from ``loss``.

    Raises:
        ConfigError: If a setting does not go with the losses, or a loss cannot be added.
    """

    def __init__(
        self, loss: PreferenceMethod, config: ObjectiveConfig, added: Sequence[Weighted] = ()
    ) -> None:
        for other, weight in added:
            if reason := why_not_added(other):
                raise ConfigError(
                    f"the loss of {other.name} cannot be added to that of {loss.name}: {reason}. Train with method "
                    f"{other.name} itself, or add another loss"
                )
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(
                    f"the weight of {other.name} must be a finite number above 0, got {weight!r}"
                )
        losses = (loss, *(other for other, _ in added))
        for problem in config.problems_with(*losses):
            raise ConfigError(problem)
        self.loss = loss
        self.config = config
        self.added = tuple(other for other, _ in added)
        self.weights = tuple(float(weight) for _, weight in added)
        self.name = loss.name  # type: ignore[misc]
        self.why_not_steered = loss.why_not_steered  # type: ignore[misc]
        self.reads_margins = any(one.reads_margins for one in losses)  # type: ignore[misc]
        self.of_differences = all(one.of_differences for one in losses)  # type: ignore[misc]
        self.scope = loss.scope
        self.needs = _needs_of(losses, config)

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
        """Return ``control`` with what the losses take from the rest of the rewritten batch, each for itself."""
        rewritten = self._rewritten(forward)
        parts = tuple(
            other.couple(rewritten, self._control_of(other, rewritten, control)) for other in self.added
        )
        return self.loss.couple(rewritten, control)._replace(parts=parts)

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the method's losses on the rewritten values, with what is added and weighted. Shape [B]."""
        rewritten = self._rewritten(forward)
        losses = self.config.weight * self.loss.losses(rewritten, control)
        for number, (other, weight) in enumerate(zip(self.added, self.weights, strict=True)):
            part = control.parts[number] if control.parts else self._control_of(other, rewritten, control)
            losses = losses + weight * other.losses(rewritten, part)
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
        if self.added:
            changed["added"] = {
                other.name: weight for other, weight in zip(self.added, self.weights, strict=True)
            }
        return {**self.loss.summary(), "objective": changed}

    def start_notes(self, updates: int) -> list[str]:
        """Return what the method has to say before a run."""
        return self.loss.start_notes(updates)

    def _control_of(self, other: PreferenceMethod, forward: PairForward, control: Control) -> Control:
        """Return what an added loss decides, which is nothing, at the beta that the method has decided on."""
        return other.control(other.evidence(forward))._replace(beta=control.beta)

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


def _needs_of(losses: Sequence[PreferenceMethod], config: ObjectiveConfig) -> Needs:
    needs = [loss.needs for loss in losses]
    wanted = [statistic for need in needs for statistic in need.statistics]
    if config.use_weighting:
        wanted.append(ALIGNED)
    return Needs(
        reference=any(need.reference for need in needs),
        batch_evidence=any(need.batch_evidence for need in needs),
        statistics=tuple({statistic.name: statistic for statistic in wanted}.values()),
        token_logps=any(need.token_logps for need in needs),
        batch_lengths=any(need.batch_lengths for need in needs),
        tail_weight=config.tail_weight,
    )
