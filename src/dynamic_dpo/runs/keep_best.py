"""Which step of a run is kept: the settings, and the evaluations of held-out pairs that decide it.

Numbers in, decisions out: weights and files are `dynamic_dpo.trainers.checkpoints.best_weights`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.settings import check_settings, documented, setting

# A customary name, and the one that evaluations log.
_OTHER_NAMES: Final = {"eval_accuracy": "eval_rewards/accuracies"}


@documented()
@dataclass(frozen=True)
class KeepBest:
    """The evaluations on held-out pairs decide which weights a run ends with, and when it ends.

    Raises:
        ConfigError: If a setting is out of its range.
    """

    metric: str = setting(
        "eval_loss",
        "What an evaluation is judged by: eval_loss, eval_accuracy, eval_rewards/margins, or any other number that "
        "evaluations log.",
        not_empty=True,
    )
    patience: int | None = setting(
        None,
        "Evaluations in a row without an improvement after which the run ends; null: it ends after its last step.",
        ge=1,
    )
    min_delta: float = setting(
        0.0,
        "What the metric must have gained, since the improvement before, to count as one for the patience. The "
        "weights that are kept are those of the best evaluation, however small its lead.",
        ge=0,
    )
    greater_is_better: bool | None = setting(
        None,
        "Whether a greater metric is a better one; null: it is, but for losses and for what is said of rejected "
        "answers.",
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def name(self) -> str:
        """The metric as evaluations log it.

        Example:
            >>> KeepBest("loss").name, KeepBest("eval_accuracy").name
            ('eval_loss', 'eval_rewards/accuracies')
        """
        name = self.metric if self.metric.startswith("eval_") else f"eval_{self.metric}"
        return _OTHER_NAMES.get(name, name)

    @property
    def wants_greater(self) -> bool:
        """Whether a greater metric is a better one.

        Example:
            >>> KeepBest().wants_greater, KeepBest("eval_accuracy").wants_greater
            (False, True)
        """
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.name.endswith(("loss", "/rejected"))

    def value_in(self, metrics: Mapping[str, Any]) -> float:
        """Return the metric of an evaluation.

        Raises:
            ConfigError: If the evaluation has none of that name; those that it has are listed.
        """
        if self.name not in metrics:
            names = ", ".join(sorted(name for name in metrics if name.startswith("eval_")))
            raise ConfigError(
                f"keep_best.metric is {self.metric}, and no evaluation logs {self.name}: choose one of {names}"
            )
        return float(metrics[self.name])


class BestSoFar:
    """The best evaluation of a run so far, and how long ago the metric has improved.

    Args:
        settings: What counts as better, and for how long a run waits for it.

    Attributes:
        step: Optimizer steps before the best evaluation, ``None`` before any gave a finite number.
        value: Its metric.
        beta: The method's beta at that time, ``None`` for a method without one.
        last_step: Optimizer steps before the last evaluation, -1 before the first.
        last_value: Its metric.
        num_evaluations: Evaluations so far.
        num_waited: Of them, those in a row at the end that brought no improvement.

    Example:
        >>> best = BestSoFar(KeepBest(patience=2))
        >>> [best.observe(step, loss) for step, loss in ((10, 0.69), (20, 0.60), (30, 0.64), (40, 0.66))]
        [True, True, False, False]
        >>> best.step, best.value, best.is_out_of_patience
        (20, 0.6, True)
    """

    def __init__(self, settings: KeepBest) -> None:
        self.settings = settings
        self.step: int | None = None
        self.value = self.last_value = math.nan
        self.beta: float | None = None
        self.last_step = -1
        self.num_evaluations = self.num_waited = 0
        # What an improvement is measured from: the metric at the last one. The best may lie above it, by less than
        # min_delta, so that a slow gain is an improvement in the end.
        self._mark = math.nan

    def observe(self, step: int, value: float, beta: float | None = None) -> bool:
        """Take an evaluation into account; return whether it is the best so far.

        What is not a finite number is never better than anything.

        Args:
            step: Optimizer steps made.
            value: The metric.
            beta: The method's beta.
        """
        self.num_evaluations += 1
        self.last_step, self.last_value = step, value
        if self._gain(value, self._mark) > self.settings.min_delta:
            self._mark, self.num_waited = value, 0
        else:
            self.num_waited += 1
        is_best = self._gain(value, self.value) > 0
        if is_best:
            self.step, self.value, self.beta = step, value, beta
        return is_best

    def _gain(self, value: float, other: float) -> float:
        if not math.isfinite(value):
            return -math.inf
        if math.isnan(other):
            return math.inf
        return value - other if self.settings.wants_greater else other - value

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the run has waited for an improvement as long as it was to."""
        patience = self.settings.patience
        return patience is not None and self.num_waited >= patience

    def why_it_ended(self) -> str:
        """Return in a sentence why a run has ended, once it has."""
        if not self.is_out_of_patience:
            return "it made all of its steps"
        by = f" by more than {self.settings.min_delta:g}" if self.settings.min_delta else ""
        waited = "evaluation" if self.num_waited == 1 else f"{self.num_waited} evaluations"
        return f"{self.settings.name} had not improved{by} at the last {waited} (patience {self.settings.patience})"

    def what_is_kept(self) -> str:
        """Return in a sentence which weights are the run's."""
        name = self.settings.name
        if self.step is None:
            return f"the weights of the last step are kept: no evaluation gave a finite {name}"
        kept = f"the weights of step {self.step} are kept, {name} {self.value:.6g}"
        if self.last_step == self.step:
            return f"{kept}: it is the last evaluation's"
        return f"{kept}; the last evaluation, at step {self.last_step}, had {self.last_value:.6g}"

    def summary(self) -> dict[str, Any]:
        """Return what the run's record says of it."""
        settings = self.settings
        return {
            "metric": settings.name,
            "greater_is_better": settings.wants_greater,
            "patience": settings.patience,
            "min_delta": settings.min_delta,
            "step": self.step,
            "value": self.value,
            "beta": self.beta,
            "last_step": self.last_step if self.num_evaluations else None,
            "last_value": self.last_value,
            "evaluations": self.num_evaluations,
            "stopped_early": self.is_out_of_patience,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the bookkeeping as JSON types, exactly; ``float`` reads the words back."""
        numbers = {"value": self.value, "last_value": self.last_value, "mark": self._mark}
        return {
            "step": self.step,
            "beta": self.beta,
            "last_step": self.last_step,
            "num_evaluations": self.num_evaluations,
            "num_waited": self.num_waited,
            **{name: number if math.isfinite(number) else str(number) for name, number in numbers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.step = None if state["step"] is None else int(state["step"])
        self.beta = None if state["beta"] is None else float(state["beta"])
        self.last_step = int(state["last_step"])
        self.num_evaluations = int(state["num_evaluations"])
        self.num_waited = int(state["num_waited"])
        self.value, self.last_value = float(state["value"]), float(state["last_value"])
        self._mark = float(state["mark"])
