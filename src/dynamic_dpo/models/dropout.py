"""Dropout found wherever a model keeps it, and switched off: in modules, in numbers of theirs, in the configuration.

Most models drop out by a module of torch; OPT, Seed-OSS and GPT-BigCode by a function that is given a number of the
module's (`dropout`, `activation_dropout`, `layerdrop`), some one of the configuration's. The noise that a router of
experts lays on its inputs in training (`jitter_noise`) is of the same kind: a draw that makes the policy of a step
another one than what the reference is compared with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

# resid_pdrop, attention_dropout, layerdrop, drop_prob.
_DROPOUT = re.compile("drop", re.IGNORECASE)
# By name: PhiMoE's `router_jitter_noise` is no noise but the threshold of its routing, in evaluation too.
_NOISE = {"jitter_noise", "input_jitter_noise", "moe_jitter_eps"}


class _Rate(NamedTuple):
    """A dropout rate above 0: the namespace that holds it, its name there, and its value."""

    namespace: dict[str, Any]
    name: str
    value: float


def largest_dropout(model: nn.Module) -> float:
    """Return the largest dropout rate in force in a model's modules, 0 where there is none."""
    return max((rate.value for rate in _rates_of_modules(model)), default=0.0)


def switch_off_dropout(model: nn.Module) -> None:
    """Switch dropout off in every module of a model. Its configuration is left as it is: see `ConfiguredDropout`."""
    for rate in list(_rates_of_modules(model)):
        rate.namespace[rate.name] = 0.0


class ConfiguredDropout:
    """The dropout rates in a model's configuration, for models that look there while they compute.

    They are off for as long as a context lasts, and not for good: the configuration is saved with the weights, and
    whoever trains that model next has to find what it came with.

    Args:
        model: A model of transformers, with or without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._given = list(_rates_of_configurations(model))

    @contextmanager
    def off(self) -> Iterator[None]:
        """Set every rate to 0 while the context lasts."""
        with _holding([rate._replace(value=0.0) for rate in self._given]):
            yield

    @contextmanager
    def as_given(self) -> Iterator[None]:
        """Undo `off` while the context lasts."""
        with _holding(self._given):
            yield


@contextmanager
def _holding(rates: list[_Rate]) -> Iterator[None]:
    before = [rate._replace(value=rate.namespace[rate.name]) for rate in rates]
    try:
        for rate in rates:
            rate.namespace[rate.name] = rate.value
        yield
    finally:
        for rate in before:
            rate.namespace[rate.name] = rate.value


def _rates_of_modules(model: nn.Module) -> Iterator[_Rate]:
    for module in model.modules():
        is_dropout = _DROPOUT.search(type(module).__name__) is not None
        for name, value in list(vars(module).items()):
            if name in _NOISE or (name == "p" and is_dropout):
                yield from _rate(vars(module), name)
            elif _DROPOUT.search(name):
                yield from _rate(vars(module), name)
                if isinstance(value, dict):  # Of adapters: a rate for each.
                    for adapter in value:
                        yield from _rate(value, adapter)


def _rates_of_configurations(model: nn.Module) -> Iterator[_Rate]:
    waiting = [vars(module)["config"] for module in model.modules() if "config" in vars(module)]
    seen: set[int] = set()
    while waiting:
        config = waiting.pop()
        if id(config) in seen or not hasattr(config, "to_dict"):
            continue
        seen.add(id(config))
        for name, value in vars(config).items():
            if _DROPOUT.search(name):
                yield from _rate(vars(config), name)
            waiting.append(value)


def _rate(namespace: dict[str, Any], name: str) -> Iterator[_Rate]:
    value = namespace[name]
    if isinstance(value, float) and value > 0:
        yield _Rate(namespace, name, value)
