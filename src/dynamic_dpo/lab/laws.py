"""Laws of margins to feed a controller with: textbook ones, and that of a run's own margin log.

A law gives independent draws; margins of a real run depend on one another and on beta.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.lab.margins import Margins, read_margins

Draw = Callable[[np.random.Generator, tuple[int, int]], Margins]

# A quantile of this many draws exceeds a share that is right to about 0.0003.
DRAWS_FOR_QUANTILES = 1_000_000


@dataclass(frozen=True)
class MarginLaw:
    """A distribution of margins.

    Attributes:
        name: As `margin_law` takes it.
        draw: Gives float32 margins in nats of the asked shape [chains, n].
    """

    name: str
    draw: Draw

    @cached_property
    def _sorted(self) -> Margins:
        # Its own generator: what a simulation draws does not depend on whether a quantile was asked for.
        return np.sort(self.draw(np.random.default_rng(0), (1, DRAWS_FOR_QUANTILES))[0])

    def quantile(self, q: float) -> float:
        """Return the ``q``-quantile, found from a million draws."""
        return float(np.quantile(self._sorted, q))


def margin_law(spec: str | Path) -> MarginLaw:
    """Return the law that ``spec`` names.

    Args:
        spec: ``normal``, ``lognormal``, ``laplace``, ``uniform`` (in their standard forms), ``t3`` or any ``t`` with
            its degrees of freedom, or the folder of a training run: its margins, drawn with replacement.

    Raises:
        ConfigError: If it is none of these.
        DataError: If the folder holds no margins.

    Example:
        >>> round(margin_law("normal").quantile(0.9), 2)
        1.28
        >>> margin_law("t3").name
        't3'
    """
    name = str(spec)
    if name in STANDARD:
        return MarginLaw(name, STANDARD[name])
    if match := re.fullmatch(r"t(\d+(?:\.\d+)?)", name):
        degrees = float(match[1])
        if degrees <= 0:
            raise ConfigError(f"a t law needs more than 0 degrees of freedom, got {name!r}")
        return MarginLaw(name, lambda rng, shape: rng.standard_t(degrees, size=shape).astype(np.float32))
    if Path(name).is_dir():
        return empirical_law(name)
    raise ConfigError(
        f"law must be one of {', '.join(STANDARD)}, t<degrees of freedom> such as t3, or the folder of a run, "
        f"got {name!r}"
    )


def empirical_law(run_dir: str | Path) -> MarginLaw:
    """Return the law of all finite margins that a run has logged, drawn with replacement.

    Raises:
        DataError: If the folder is no run, or it logged no finite margin.
    """
    batches = read_margins(run_dir)
    pool = np.concatenate([batch[np.isfinite(batch)] for batch in batches])
    if not pool.size:
        raise DataError(f"{run_dir} has logged {len(batches)} batches without a single finite margin")
    return MarginLaw(str(run_dir), lambda rng, shape: rng.choice(pool, size=shape))


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Margins:
    return rng.standard_normal(shape, dtype=np.float32)


def _lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Margins:
    return np.exp(rng.standard_normal(shape, dtype=np.float32))


def _laplace(rng: np.random.Generator, shape: tuple[int, int]) -> Margins:
    return rng.laplace(size=shape).astype(np.float32)


def _uniform(rng: np.random.Generator, shape: tuple[int, int]) -> Margins:
    return rng.random(shape, dtype=np.float32)


STANDARD: dict[str, Draw] = {
    "normal": _normal,
    "lognormal": _lognormal,
    "laplace": _laplace,
    "uniform": _uniform,
}
