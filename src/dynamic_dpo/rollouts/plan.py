"""What a rollout is to do, in plain values: prompts, who answers and how, labels, pairs, and which part is ours.

Made from a file of settings by the command, or by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.judges.base import Scorer
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.plan import JudgingSettings
from dynamic_dpo.rollouts.answers import POLICY, WEAK
from dynamic_dpo.rollouts.pairing_rules import BETTER_WRITER
from dynamic_dpo.rollouts.settings import AnswerFilters, PairingSettings

MANY = 8
"""From so many answers a prompt, ``auto`` is ``best_mu2sigma``."""


class Shard(NamedTuple):
    """One of several equal parts of the prompts: every ``total``-th of the draw, beginning with ``number``.

    Attributes:
        number: Which part, from 1.
        total: How many parts there are.
    """

    number: int
    total: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """Read ``i/n``.

        Raises:
            ConfigError: If it is none, or there is no such part.

        >>> Shard.read("2/7")
        Shard(number=2, total=7)
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ConfigError(f"rollout.shard must be i/n with 1 ≤ i ≤ n, such as 2/7, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def holds(self, place: int) -> bool:
        """Return whether the prompt at a place of the draw, from 0, belongs to this part.

        Every place belongs to exactly one part, so that no remainder is lost:

        >>> [Shard(n, 3).holds(7) for n in (1, 2, 3)]
        [False, True, False]
        """
        return place % self.total == self.number - 1


class WeightedScorer(NamedTuple):
    """A scorer and what its scores count.

    Attributes:
        make: Makes the scorer; called only when it is needed.
        identity: Settings of the scorer, as JSON types: what tells whether its scores are those of now.
        weight: What a score is multiplied with before the scorers' scores are added up.
    """

    make: Callable[[], Scorer]
    identity: Mapping[str, Any]
    weight: float = 1.0


@dataclass(frozen=True)
class Scoring:
    """Labels by scorers: an answer's score is the sum of their scores, each times its weight.

    The scores are added as they are, not standardised: a score then means the same for every prompt, and hangs on no
    other answer. Weights are therefore in the scorers' own units.

    Attributes:
        scorers: By a name of the user's.
    """

    scorers: Mapping[str, WeightedScorer]


@dataclass(frozen=True)
class Comparing:
    """Labels by a judge that compares a prompt's answers, each two in both orders: see `rollouts.comparisons`.

    Attributes:
        judging: The judge, its budget, and how many questions are under way at a time.
        max_comparisons: Most comparisons of one prompt; ``None``: every two answers.
        seed: Seed of which answers meet where not all do.
    """

    judging: JudgingSettings
    max_comparisons: int | None = None
    seed: int = 42


@dataclass(frozen=True)
class PromptSource:
    """Where the prompts come from.

    Attributes:
        load: Arguments of `load_prompts`, its name included, without ``max_samples``.
        limit: Most prompts; ``None`` for all.
        skip: Prompts at the beginning of the draw that are passed over: those of an earlier round.
        exclude: Arguments of `load_prompts` for each set whose prompts must not be sampled.
    """

    load: Mapping[str, Any]
    limit: int | None = None
    skip: int = 0
    exclude: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class RolloutPlan:
    """Everything a rollout does.

    Attributes:
        folder: Where everything goes.
        prompts: Where the prompts come from.
        policy: The model that answers; its name is ``policy``.
        generation: How it answers; ``num_samples`` answers a prompt.
        labels: How answers are labelled; ``None`` for rules that need no labels.
        pairing: How pairs are made.
        filters: Which answers may stand in no pair.
        weak: A second model, named ``weak``, whose answers are taken for worse ones.
        shard: Which part of the prompts is taken; ``None`` for all.
        progress: Whether a terminal gets progress bars.

    Raises:
        ConfigError: If rule, labels and models do not go together.
    """

    folder: Path
    prompts: PromptSource
    policy: ModelSpec
    generation: GenerationSettings
    labels: Scoring | Comparing | None
    pairing: PairingSettings = field(default_factory=PairingSettings)
    filters: AnswerFilters = field(default_factory=AnswerFilters)
    weak: ModelSpec | None = None
    shard: Shard | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.policy.name != POLICY or (self.weak is not None and self.weak.name != WEAK):
            raise ConfigError(f"the models of a rollout must be named {POLICY} and {WEAK}")
        if (self.weak is not None) != (self.rule == "strong_weak"):
            raise ConfigError(
                "rollout.weak_model and rollout.pairs.rule=strong_weak go together: give both or neither"
            )
        if self.labels is None and self.rule not in BETTER_WRITER:
            raise ConfigError(
                f"rollout.pairs.rule {self.rule} needs scores: set rollout.judge, or choose one of "
                f"{', '.join(BETTER_WRITER)}, which take one writer's answers for the better ones"
            )
        if self.labels is not None and self.rule == "strong_weak":
            raise ConfigError(
                "rollout.judge has no effect on rollout.pairs.rule=strong_weak, where the weak model's answers are "
                "the rejected ones: set rollout.judge=none"
            )
        if self.labels is None and (self.pairing.length_penalty or self.pairing.min_gap):
            raise ConfigError(
                "rollout.pairs.length_penalty and min_gap have no effect while rollout.judge is none: leave them out"
            )
        if self.rule not in BETTER_WRITER and self.generation.num_samples < 2:
            raise ConfigError(
                f"rollout.responses_per_prompt must be at least 2 for rollout.pairs.rule {self.rule}, got "
                f"{self.generation.num_samples}"
            )

    @property
    def rule(self) -> str:
        """The rule in force."""
        if self.pairing.rule != "auto":
            return self.pairing.rule
        if self.weak is not None:
            return "strong_weak"
        return "best_mu2sigma" if self.generation.num_samples >= MANY else "best_worst"

    @property
    def models(self) -> list[ModelSpec]:
        """The models that answer."""
        return [self.policy] if self.weak is None else [self.policy, self.weak]

    @property
    def needs_reference(self) -> bool:
        """Whether the data set's own answers take part."""
        return self.rule == "with_reference"

    def drawing(self) -> dict[str, Any]:
        """Return, as JSON types, what decides which prompts there are."""
        return {**asdict(self.prompts), "shard": None if self.shard is None else str(self.shard)}
