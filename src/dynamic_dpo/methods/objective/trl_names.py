"""The loss that the arguments of TRL 1.16's `DPOTrainer` ask for, as a method; TRL itself is not needed.

Nothing is lost in silence: an argument that the chosen losses do not read is refused, where TRL would pass it over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import BuildContext, PreferenceMethod
from dynamic_dpo.methods.objective.adjusted import adjusted
from dynamic_dpo.methods.objective.settings import ObjectiveConfig
from dynamic_dpo.methods.table import METHODS

T = TypeVar("T")


class _Loss(NamedTuple):
    """A loss by TRL's name: our method, and which of its settings TRL's ``label_smoothing`` is."""

    method: str
    smoothing: str = ""


LOSSES = {
    # TRL smooths no labels in this one; here it is conservative DPO, unless another loss takes the smoothing.
    "sigmoid": _Loss("dpo"),
    "hinge": _Loss("hinge"),
    "ipo": _Loss("ipo"),
    "exo_pair": _Loss("exo_pair", "epsilon"),
    "nca_pair": _Loss("nca_pair"),
    "robust": _Loss("robust", "epsilon"),
    "bco_pair": _Loss("bco_pair"),
    "sppo_hard": _Loss("sppo_hard"),
    "aot": _Loss("aot", "label_smoothing"),
    "aot_unpaired": _Loss("aot_unpaired", "label_smoothing"),
    "apo_zero": _Loss("apo_zero"),
    "apo_down": _Loss("apo_down"),
    "discopop": _Loss("discopop"),
    "sft": _Loss("sft"),
    "sigmoid_norm": _Loss("dpo_norm"),
}

# TRL's default.
DISCOPOP_TAU = 0.05

# Our settings of the objective by TRL's arguments.
OBJECTIVE = {
    "f_divergence_type": "f_divergence",
    "f_alpha_divergence_coef": "f_alpha",
    "ld_alpha": "ld_alpha",
    "use_weighting": "use_weighting",
}


def loss_of(arguments: Any, *, beta: float) -> PreferenceMethod:
    """Return the loss that training arguments ask for, with a constant beta.

    Args:
        arguments: A ``trl.DPOConfig``, or plain training arguments, which ask for DPO's loss.
        beta: The losses' beta.

    Raises:
        ConfigError: If a loss is unknown, an argument has no effect on the losses, or they do not go together.
    """
    given = getattr(arguments, "loss_type", None) or "sigmoid"
    names = [given] if isinstance(given, str) else list(given)
    if unknown := [name for name in names if name not in LOSSES]:
        raise ConfigError(
            f"training argument loss_type={given!r}: {unknown[0]!r} is none of {', '.join(LOSSES)}"
        )
    weighted = _weighted(names, getattr(arguments, "loss_weights", None))
    smoothing = _smoothing(list(weighted), float(getattr(arguments, "label_smoothing", 0.0) or 0.0))
    tau = getattr(arguments, "discopop_tau", DISCOPOP_TAU)
    if tau != DISCOPOP_TAU and "discopop" not in weighted:
        raise ConfigError(
            f"training argument discopop_tau={tau!r}: it has no effect on loss_type={list(weighted)!r}; leave it out"
        )
    losses = []
    for name, weight in weighted.items():
        kind = METHODS[LOSSES[name].method]
        own: dict[str, Any] = dict(smoothing[name])
        if name == "discopop":
            own["tau"] = tau
        losses.append((_made(kind, own, beta), weight))
    # The one that decides on beta comes first: likelihoods have none.
    losses.sort(key=lambda entry: bool(entry[0].why_not_steered))
    (loss, weight), *added = losses
    return _with_objective(arguments, loss, weight, added)


def _weighted(names: Sequence[str], weights: Sequence[float] | None) -> dict[str, float]:
    """Return the losses' weights by name; those named twice count twice, those of weight 0 not at all."""
    found = [1.0] * len(names) if weights is None else [float(weight) for weight in weights]
    if len(found) != len(names) or not all(weight >= 0 and math.isfinite(weight) for weight in found):
        raise ConfigError(
            f"training argument loss_weights={weights!r}: expected {len(names)} finite numbers that are 0 or more, "
            f"one for each loss of loss_type={list(names)!r}"
        )
    sums: dict[str, float] = {}
    for name, weight in zip(names, found, strict=True):
        sums[name] = sums.get(name, 0.0) + weight
    kept = {name: weight for name, weight in sums.items() if weight}
    if not kept:
        raise ConfigError(
            f"training argument loss_weights={weights!r}: all are 0, so that nothing would be trained"
        )
    return kept


def _smoothing(names: Sequence[str], smoothing: float) -> dict[str, dict[str, float]]:
    """Return each loss's settings that ``label_smoothing`` decides."""
    takers = {name: LOSSES[name].smoothing for name in names if LOSSES[name].smoothing}
    if "exo_pair" in takers and smoothing == 0.0:
        raise ConfigError(
            "training argument label_smoothing=0.0: exo_pair needs a share of wrong labels above 0; its paper takes "
            "1e-3"
        )
    if not takers and "sigmoid" in names:
        takers = {"sigmoid": "label_smoothing"}
    if smoothing and not takers:
        raise ConfigError(
            f"training argument label_smoothing={smoothing!r}: it has no effect on loss_type={list(names)!r}; leave "
            f"it out, or choose one of sigmoid, {', '.join(name for name, loss in LOSSES.items() if loss.smoothing)}"
        )
    return {name: {takers[name]: smoothing} if name in takers else {} for name in names}


def _with_objective(
    arguments: Any, loss: PreferenceMethod, weight: float, added: list[tuple[PreferenceMethod, float]]
) -> PreferenceMethod:
    own: dict[str, Any] = {}
    for theirs, ours in OBJECTIVE.items():
        value = getattr(arguments, theirs, None)
        if value is not None:
            own[ours] = getattr(value, "value", value)
    config = _named_by_trl(arguments, lambda: ObjectiveConfig(weight=weight, **own))
    return _named_by_trl(arguments, lambda: adjusted(loss, config, added))


def _named_by_trl(arguments: Any, make: Callable[[], T]) -> T:
    """Return what ``make`` does; what it refuses is said with the argument's own name before it."""
    try:
        return make()
    except ConfigError as error:
        setting = str(error).split(" ", 1)[0]
        theirs = {ours: theirs for theirs, ours in OBJECTIVE.items()}.get(setting)
        if theirs is None:
            raise
        raise ConfigError(f"training argument {theirs}={getattr(arguments, theirs)!r}: {error}") from error


def _made(kind: type[PreferenceMethod], own: dict[str, Any], beta: float) -> PreferenceMethod:
    """Return a loss with the settings given, and with ``beta`` as its own or, where it has none, the run's."""
    if "beta" in getattr(kind.Settings, "__dataclass_fields__", {}):
        own = {"beta": beta, **own}
    loss: PreferenceMethod = kind.build(BuildContext(own, beta, "micro", pairs_per_update=lambda scope: 0))
    return loss
