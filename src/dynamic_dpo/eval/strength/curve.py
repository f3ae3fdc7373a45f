"""The curve over strengths: one pass over the held-out pairs a strength, and what the pairs say of it.

The pass at strength 0 is the reference's own and gives all others their margins; it is made in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dynamic_dpo.engine.capability import inference
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods.base import Needs

NUM_BINS = 10


class Movable(Protocol):
    """A model that can be set to a strength; see `dynamic_dpo.eval.strength.between`."""

    model: Any

    def move_to(self, strength: float) -> None:
        """Set the model to a strength."""


@dataclass(frozen=True)
class StrengthPoint:
    """What held-out pairs say of the model at one strength.

    Attributes:
        strength: c of θ_c = θ_ref + c (θ - θ_ref).
        loss: Mean of -log σ(beta × margin), nats.
        loss_error: Its standard error; NaN for one pair.
        accuracy: Share of pairs with a positive margin; a margin of 0 counts half.
        calibration_error: Expected calibration error of σ(beta × margin), see `calibration_error`.
        kl: Estimate of KL(reference || model), nats a token, see `token_kl`.
        mean_margin: Mean margin, nats, without beta.
        chosen_change: Mean change of the chosen answers' log-probability, nats a token.
    """

    strength: float
    loss: float
    loss_error: float
    accuracy: float
    calibration_error: float
    kl: float
    mean_margin: float
    chosen_change: float


class _Pass(NamedTuple):
    """Summed log-probabilities, nats, shape [N, 2]; of single scored tokens, shape [T]."""

    logps: NDArray[np.float64]
    tokens: NDArray[np.float64]


def strength_curve(
    between: Movable,
    pairs: PairBatch,
    grid: Iterable[float],
    *,
    beta: float,
    engine: EngineConfig | None = None,
    known: Mapping[float, StrengthPoint] | None = None,
    on_point: Callable[[StrengthPoint], object] = lambda point: None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[StrengthPoint]:
    """Score held-out pairs at every strength of a grid.

    Args:
        between: The model; it is left at the last strength that was scored.
        pairs: Held-out pairs.
        grid: Strengths, finite and not negative; repeated ones are scored once.
        beta: Scale of the rewards that loss and calibration are formed with.
        engine: How pairs meet the model.
        known: Points that were scored earlier.
        on_point: Told every point that was scored now.
        progress: Told the number of pairs after each micro-batch.

    Returns:
        The points, by strength.

    Raises:
        ConfigError: If a strength is none.
    """
    wanted = sorted({float(strength) for strength in grid})
    if not wanted or not all(np.isfinite(wanted)) or wanted[0] < 0:
        raise ConfigError(f"strengths must be finite and at least 0, got {wanted}")
    found = {strength: point for strength, point in (known or {}).items() if strength in wanted}
    missing = [strength for strength in wanted if strength not in found]
    if not missing:
        return [found[strength] for strength in wanted]
    scorer = PairScorer(between.model, engine)
    # One plan for all: tokens of two passes then stand at the same places.
    plan = scorer.plan(pairs, with_gradients=False)
    reference = _score(between, 0.0, scorer, pairs, plan, progress)
    lengths = _lengths(pairs)
    for strength in missing:
        scored = reference if strength == 0 else _score(between, strength, scorer, pairs, plan, progress)
        found[strength] = _point(strength, scored, reference, lengths, beta)
        on_point(found[strength])
    return [found[strength] for strength in wanted]


def _score(
    between: Movable,
    strength: float,
    scorer: PairScorer,
    pairs: PairBatch,
    plan: Sequence[Sequence[int]],
    progress: Callable[[int], object],
) -> _Pass:
    between.move_to(strength)
    logps = np.zeros((len(pairs), 2))
    tokens = []
    for microbatch in plan:
        with inference(between.model):
            scored = scorer.score(between.model, pairs.select(microbatch), needs=Needs(token_logps=True))
        logps[microbatch, 0] = scored.chosen.double().cpu().numpy()
        logps[microbatch, 1] = scored.rejected.double().cpu().numpy()
        tokens.append(scored.token_logps.double().cpu().numpy())
        progress(len(microbatch))
    return _Pass(logps, np.concatenate(tokens))


def _lengths(pairs: PairBatch) -> NDArray[np.float64]:
    from dynamic_dpo.engine.rows import scored_lengths

    return np.asarray(scored_lengths(pairs), np.float64)


def _point(
    strength: float, scored: _Pass, reference: _Pass, lengths: NDArray[np.float64], beta: float
) -> StrengthPoint:
    ratios = scored.logps - reference.logps
    margins = ratios[:, 0] - ratios[:, 1]
    losses = np.logaddexp(0.0, -beta * margins)
    error = losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else np.nan
    return StrengthPoint(
        strength=strength,
        loss=float(losses.mean()),
        loss_error=float(error),
        accuracy=float(((margins > 0) + (margins == 0) / 2).mean()),
        calibration_error=calibration_error(margins, beta=beta),
        kl=token_kl(scored.tokens, reference.tokens),
        mean_margin=float(margins.mean()),
        chosen_change=float((ratios[:, 0] / lengths[:, 0]).mean()),
    )


def calibration_error(margins: ArrayLike, *, beta: float) -> float:
    """Return the expected calibration error of the probabilities that rewards imply (Guo et al. 2017).

    σ(beta × margin) is the probability that the chosen answer is the preferred one, by Bradley and Terry. The
    confidence of a pair is that probability, or what it lacks to 1 where it prefers the other answer; pairs are laid
    in 10 bins of equal width on [0.5, 1], and the error is the mean over pairs of their bin's |share that is right -
    mean confidence|.

    Args:
        margins: Nats, without beta. Shape [N].
        beta: Scale of the rewards.

    Example:
        >>> calibration_error([0.0, 0.0], beta=1.0), round(calibration_error([50.0, -50.0], beta=1.0), 6)
        (0.0, 0.5)
    """
    rewards = beta * np.asarray(margins, np.float64)
    confidence = 1.0 / (1.0 + np.exp(-np.abs(rewards)))
    right = (rewards > 0) + (rewards == 0) / 2
    bins = np.minimum(((confidence - 0.5) * 2 * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.bincount(bins, right - confidence, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(rewards))


def token_kl(logps: ArrayLike, reference_logps: ArrayLike) -> float:
    """Return an estimate of KL(reference || model) from single tokens, nats a token.

    The mean of r - 1 - log r with r = model/reference probability of a token, Schulman's k3 (2020, "Approximating KL
    divergence"): never negative, and right where the tokens are samples of the reference. Answers of other writers
    make it a measure of how far the model has moved on them.

    Args:
        logps: Log-probability of each token under the model, nats. Shape [T].
        reference_logps: The same under the reference. Shape [T].
    """
    ratio = np.asarray(logps, np.float64) - np.asarray(reference_logps, np.float64)
    with np.errstate(over="ignore"):
        return float((np.expm1(ratio) - ratio).mean())


def best_point(points: Sequence[StrengthPoint], choose: str) -> StrengthPoint:
    """Return the point with the least loss or calibration error, or the greatest accuracy; the first of equals.

    Args:
        points: The curve.
        choose: ``loss``, ``calibration_error`` or ``accuracy``.
    """
    sign = -1.0 if choose == "accuracy" else 1.0
    finite = [point for point in points if np.isfinite(getattr(point, choose))]
    if not finite:
        raise ConfigError(f"no strength has a finite {choose}: look at the pairs, and at the weights")
    return min(finite, key=lambda point: sign * float(getattr(point, choose)))


def as_record(point: StrengthPoint) -> dict[str, Any]:
    """Return a point as JSON types; what is not finite is null."""
    return {name: value if np.isfinite(value) else None for name, value in asdict(point).items()}


def from_record(record: Mapping[str, Any]) -> StrengthPoint:
    """Return the point that `as_record` gave."""
    values = {entry.name: record[entry.name] for entry in fields(StrengthPoint)}
    return StrengthPoint(
        **{name: np.nan if value is None else float(value) for name, value in values.items()}
    )
