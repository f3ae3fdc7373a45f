"""Alarms: what in a run's log says that the training harms the model, found while it is written or afterwards.

They read the entries of the trainer's log alone, so that a run that is resumed, every rank, and a report find the
same. Log-ratios are those of policy and reference, nats a token. That chosen answers lose probability together with
rejected ones is the likelihood displacement of Razin et al. 2024 (https://arxiv.org/abs/2410.08847); saturated
margins have no gradient left, since a pair's weight is sigmoid(-beta h) (Rafailov et al. 2023,
https://arxiv.org/abs/2305.18290).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

from dynamic_dpo.utils.settings import check_settings, setting

# Entries before the first whose gradient is held against them, and whose margins of 0 count.
_ENTRIES_BEFORE = 3

Action = Literal["warn", "stop"]
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class AlarmConfig:
    """When the log of a run raises an alarm, and what follows."""

    action: Action = setting(
        "warn",
        "warn: say it and go on; stop: save and end the run. Each alarm is raised once.",
        key="alarms.action",
    )
    chosen_fall: float | None = setting(
        1.0,
        "Nats a token that chosen answers may lose against the reference; null: any.",
        key="alarms.chosen_fall",
        gt=0,
    )
    displacement: float | None = setting(
        0.5,
        "Nats a token that chosen answers may lose together with rejected ones, half as many as these or more; "
        "null: any.",
        key="alarms.displacement",
        gt=0,
    )
    saturation: float | None = setting(
        3.0,
        "Beta times the margin that nine pairs of ten may exceed: the weight of such a pair is e to minus it; "
        "null: any.",
        key="alarms.saturation",
        gt=0,
    )
    accuracy_gap: float | None = setting(
        0.3,
        "By how much the accuracy on training pairs, rising, may stand above that on held-out pairs; null: any.",
        key="alarms.accuracy_gap",
        gt=0,
        le=1,
    )
    gradient_jump: float | None = setting(
        10.0,
        "How many times the median of the entries before a gradient's norm may be; null: any.",
        key="alarms.gradient_jump",
        gt=1,
    )
    loss_rise: float | None = setting(
        1.5,
        "How many times the first entry's loss a later one may be; null: any.",
        key="alarms.loss_rise",
        gt=1,
    )
    zero_margins: float | None = setting(
        0.25,
        "Share of pairs whose margin may be exactly 0 once three entries are written; null: any.",
        key="alarms.zero_margins",
        gt=0,
        le=1,
    )
    sample_length: float | None = setting(
        2.0,
        "How many times the first samples' mean length that of later ones may be; null: any.",
        key="alarms.sample_length",
        gt=1,
    )
    repetition: float | None = setting(
        0.2,
        "By how much the repetition rate of samples may stand above that of the first ones; null: any.",
        key="alarms.repetition",
        gt=0,
        le=1,
    )
    missing_stops: float | None = setting(
        0.5,
        "By how much the share of samples that end by themselves may lie below that of the first ones; null: any.",
        key="alarms.missing_stops",
        gt=0,
        le=1,
    )

    def __post_init__(self) -> None:
        check_settings(self)


class Alarm(NamedTuple):
    """One alarm.

    Attributes:
        name: The setting that holds its threshold.
        step: The step of the entry that raised it.
        value: What was found.
        limit: The threshold.
        sentence: Both, what it means, and what to do.
    """

    name: str
    step: int
    value: float
    limit: float
    sentence: str


class AlarmWatch:
    """Reads a run's log, entry by entry.

    Args:
        config: The thresholds.

    Attributes:
        raised: The alarms so far, each the first time.
    """

    def __init__(self, config: AlarmConfig | None = None) -> None:
        self.config = config or AlarmConfig()
        self.raised: list[Alarm] = []
        self._norms: list[float] = []
        self._num_entries = 0
        self._first_loss: float | None = None
        self._first_accuracy: float | None = None
        self._accuracies: list[float] = []
        self._first_samples: Entry = {}

    def see(self, entry: Entry) -> list[Alarm]:
        """Return the alarms that an entry raises for the first time.

        Args:
            entry: One of the trainer's log, of training or of an evaluation, in their order.
        """
        found = []
        known = {alarm.name for alarm in self.raised}
        for name, value, sentence in self._findings(entry):
            limit = getattr(self.config, name)
            if limit is None or name in known or not (math.isfinite(value) and value > limit):
                continue
            text = f"{sentence(value)} (alarms.{name} is {limit:g})"
            found.append(Alarm(name, int(entry.get("step", 0)), value, limit, text))
        self.raised += found
        self._remember(entry)
        return found

    def _findings(self, entry: Entry) -> Iterator[tuple[str, float, Callable[[float], str]]]:
        """Yield the number that each threshold is held against, as far as the entry tells it."""
        chosen, rejected = _number(entry, "logratios/chosen"), _number(entry, "logratios/rejected")
        yield "chosen_fall", -chosen, _chosen_fall
        # Together: of what rejected answers lose, chosen ones lose half or more.
        yield "displacement", -chosen if chosen <= 0.5 * rejected < 0 else math.nan, _displacement
        yield "saturation", _number(entry, "beta") * _number(entry, "margins/p10"), _saturation
        if len(self._norms) >= _ENTRIES_BEFORE:
            before = median(self._norms)
            yield "gradient_jump", _number(entry, "grad_norm") / before if before else math.nan, _jump
        if self._first_loss is not None and self._first_loss > 0:
            yield "loss_rise", _number(entry, "loss") / self._first_loss, _loss
        if self._num_entries >= _ENTRIES_BEFORE:
            yield "zero_margins", _number(entry, "margins/zeros"), _zeros
        held_out = _number(entry, "eval_rewards/accuracies")
        if self._accuracies and self._first_accuracy is not None:
            training = sum(self._accuracies) / len(self._accuracies)
            if training > self._first_accuracy:
                yield "accuracy_gap", training - held_out, _gap
        yield from self._findings_in_samples(entry)

    def _findings_in_samples(self, entry: Entry) -> Iterator[tuple[str, float, Callable[[float], str]]]:
        first = self._first_samples
        if length := _number(first, "samples/length"):
            yield "sample_length", _number(entry, "samples/length") / length, _length
        repetition = _number(entry, "samples/repetition") - _number(first, "samples/repetition")
        yield "repetition", repetition, _repetition
        stopped = _number(first, "samples/stopped") - _number(entry, "samples/stopped")
        yield "missing_stops", stopped, _missing_stops

    def _remember(self, entry: Entry) -> None:
        norm, accuracy = _number(entry, "grad_norm"), _number(entry, "rewards/accuracies")
        if math.isfinite(norm):
            self._norms.append(norm)
        if math.isfinite(accuracy):
            self._accuracies.append(accuracy)
            if self._first_accuracy is None:
                self._first_accuracy = accuracy
        loss = _number(entry, "loss")
        if self._first_loss is None and math.isfinite(loss):
            self._first_loss = loss
        self._num_entries += "loss" in entry
        if "eval_rewards/accuracies" in entry:
            self._accuracies = []
        if "samples/length" in entry and not self._first_samples:
            self._first_samples = entry


def alarms_of(history: Iterable[Entry], config: AlarmConfig | None = None) -> list[Alarm]:
    """Return the alarms that a log raises.

    Args:
        history: The entries, in their order.
        config: The thresholds.

    Example:
        >>> history = [{"step": 10, "loss": 0.7}, {"step": 20, "loss": 0.9, "logratios/chosen": -1.25}]
        >>> [(alarm.name, alarm.step, alarm.value) for alarm in alarms_of(history)]
        [('chosen_fall', 20, 1.25)]
    """
    watch = AlarmWatch(config)
    for entry in history:
        watch.see(entry)
    return watch.raised


def _chosen_fall(value: float) -> str:
    return (
        f"chosen answers have lost {value:.2f} nats a token against the reference: the policy unlearns what it was "
        "shown as good. Lower the learning rate, raise beta, or add their likelihood (objective.nll_weight)"
    )


def _displacement(value: float) -> str:
    return (
        f"chosen answers have lost {value:.2f} nats a token against the reference, together with rejected ones: "
        "probability goes to answers that nobody ranked. Look for pairs that differ in little, raise beta, or set "
        "objective.nll_weight"
    )


def _saturation(value: float) -> str:
    return (
        f"beta times the margin is {value:.1f} or more in nine pairs of ten: they teach nothing more, and what is "
        "left trains on the rest. Stop earlier, or look whether rejected answers are too easy to tell"
    )


def _jump(value: float) -> str:
    return (
        f"the gradient's norm is {value:.0f} times the median of the entries before: the step was too large or the "
        "batch is strange. Lower the learning rate, or clip gradients (max_grad_norm)"
    )


def _loss(value: float) -> str:
    return (
        f"the loss is {value:.2f} times that of the first entry: training undoes what it learns. Lower the learning "
        "rate, or warm it up longer"
    )


def _zeros(value: float) -> str:
    return (
        f"{100 * value:.0f} % of the pairs have a margin of exactly 0 although the policy has moved: it may be "
        "compared with itself, completions may be masked away, the learning rate may be 0, or both answers may be "
        "the same. dpo_training.debug_samples writes what the model sees"
    )


def _gap(value: float) -> str:
    return (
        f"accuracy on training pairs has risen and stands {value:.2f} above that on held-out pairs: the policy "
        "learns the pairs by heart. Stop earlier, train fewer epochs, or look at the labels"
    )


def _length(value: float) -> str:
    return (
        f"samples are {value:.1f} times as long as the first ones: preference for length is learned, or stops are "
        "unlearned. Look at them, compare the lengths of chosen and rejected answers, or take a method that weighs "
        "by length"
    )


def _repetition(value: float) -> str:
    return (
        f"samples repeat themselves: their rate stands {value:.2f} above that of the first ones. Look at them, lower "
        "the learning rate, raise beta, or stop earlier"
    )


def _missing_stops(value: float) -> str:
    return (
        f"the share of samples that end by themselves lies {value:.2f} below that of the first ones: the policy "
        "unlearns to stop. Look whether the answers that it is taught end in the stop token: a template may leave it "
        "out, or the limit of length cut it off"
    )


def _number(entry: Entry, name: str) -> float:
    value = entry.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan  # type: ignore[arg-type]
