"""What most methods are built from: a constant beta, or the loss of another method; running moments of margins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import BuildContext, Control, Needs, PairForward, PreferenceMethod
from dynamic_dpo.methods.settings import Scope

# No torch at import, as in every module of a method: see `dynamic_dpo.methods.table`.
if TYPE_CHECKING:
    from torch import Tensor


class FixedBetaMethod(PreferenceMethod):
    """A loss with a constant beta, which is where controllers put theirs.

    Args:
        config: An object of `Settings`; by default one with the defaults.
    """

    Settings: ClassVar[type[Any]]

    def __init__(self, config: Any = None) -> None:
        self.config = self.Settings() if config is None else config

    @property
    def beta(self) -> float:
        """The constant."""
        return float(self.config.beta)


class CoupledMethod(FixedBetaMethod):
    """A loss with a constant beta in which the pairs of a controller batch hang together: see `couple`.

    Args:
        config: An object of `Settings`; by default one with the defaults.
        scope: What a controller batch is.
    """

    needs = Needs(batch_evidence=True)

    def __init__(self, config: Any = None, *, scope: Scope = "micro") -> None:
        super().__init__(config)
        self.scope = scope

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the loss as a run's settings describe it, with the run's scope."""
        return cls(cls.Settings(**context.own_with_beta()), scope=context.scope)


class SteeringMethod(PreferenceMethod):
    """A controller: hands evidence, losses and needs on to ``loss``, and decides on beta.

    Attributes:
        loss: The method whose beta is moved: one without a state, since nothing but this method's is kept. Its
            own beta is not used.
    """

    steers_beta: ClassVar[bool] = True
    why_not_steered: ClassVar[str] = "it is itself a controller of beta"

    def __init__(self, loss: PreferenceMethod) -> None:
        check_steerable(loss, self.name)
        self.loss = loss
        self.needs = loss.needs

    def evidence(self, forward: PairForward) -> Tensor:
        """Return the evidence of the steered loss, detached. Shape [B]."""
        return self.loss.evidence(forward)

    def couple(self, forward: PairForward, control: Control) -> Control:
        """Return ``control`` with what the steered losses take from the rest of the batch."""
        return self.loss.couple(forward, control)

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the steered losses of the pairs, at the beta in ``control``. Shape [B]."""
        return self.loss.losses(forward, control)


def check_steerable(loss: PreferenceMethod, controller: str) -> None:
    """Raise `ConfigError` where no controller can move the beta of ``loss``, with the reason."""
    if loss.why_not_steered:
        raise ConfigError(
            f"method {controller} cannot steer the beta of {loss.name}: {loss.why_not_steered}. Train with method "
            f"{loss.name} itself, or choose another loss"
        )


class Moments(NamedTuple):
    """Mean and standard deviation, in the unit of the values."""

    mean: float
    std: float


def batch_moments(values: Tensor) -> Moments:
    """Return mean and unbiased standard deviation of finite values, shape [N], N ≥ 1; a single value has spread 0.

    Example:
        >>> import torch
        >>> batch_moments(torch.tensor([1.0, 2.0, 3.0]))
        Moments(mean=2.0, std=1.0)
    """
    # Python's numbers from here on: they survive JSON exactly.
    return Moments(values.mean().item(), values.std().item() if len(values) > 1 else 0.0)


def follow(old: Moments, new: Moments, momentum: float) -> Moments:
    """Return ``momentum · old + (1 - momentum) · new``, entry by entry."""
    mean, std = (momentum * a + (1.0 - momentum) * b for a, b in zip(old, new, strict=True))
    return Moments(mean, std)


def finite_values(evidence: Tensor) -> Tensor:
    """Return the finite values of ``evidence`` on the CPU, float64 so that nothing is rounded. Shape [≤ N].

    `dynamic_dpo.methods.base.finite_margins` gives them in float32, as the risk controller's traces have them.
    """
    values = evidence.detach().cpu().double().reshape(-1)
    return values[values.isfinite()]
