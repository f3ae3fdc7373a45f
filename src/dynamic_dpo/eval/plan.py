"""What an evaluation is to do, in plain values: prompts, models, generation, judging, scoring, statistics.

Made from a file of settings by the command, or by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.generate.turns_settings import TurnsSettings
from dynamic_dpo.eval.judges.base import Judge
from dynamic_dpo.eval.judges.turns.chat import TurnsJudge
from dynamic_dpo.eval.judging.spending import Budget
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.statistics.alpaca_eval.settings import AlpacaEvalSettings
from dynamic_dpo.eval.statistics.arena.settings import ArenaSettings

if TYPE_CHECKING:
    from dynamic_dpo.eval.scoring.outputs import ScoringSettings


@dataclass(frozen=True)
class JudgingSettings:
    """How the outputs are judged.

    Attributes:
        make_judge: Makes the judge, of conversations where ``turns`` asks for them; called only when it is needed.
        identity: Settings of the judge, as JSON types: what tells whether the report fits the judgements.
        both_orders: Ask every comparison in both orders.
        randomize_order: Where it is asked once: draw the order by a hash, else the baseline stands second.
        seed: Seed of that draw.
        concurrency: Questions under way at a time.
        budget: Limits.
    """

    make_judge: Callable[[], Judge | TurnsJudge]
    identity: Mapping[str, Any]
    both_orders: bool = True
    randomize_order: bool = True
    seed: int = 42
    concurrency: int = 4
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class StatisticsSettings:
    """How intervals are computed.

    Attributes:
        bootstrap: Resamples of the prompts.
        seed: Seed of the resampling.
        confidence: Coverage of the intervals.
        arena_hard: Whether Arena-Hard's score is computed, and how.
        alpaca_eval: Whether AlpacaEval 2's numbers are computed, and from which difficulties.
    """

    bootstrap: int = 2000
    seed: int = 0
    confidence: float = 0.95
    arena_hard: ArenaSettings = field(default_factory=ArenaSettings)
    alpaca_eval: AlpacaEvalSettings = field(default_factory=AlpacaEvalSettings)


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything an evaluation does.

    Attributes:
        folder: Where everything goes.
        prompts: Arguments of `load_prompts`, its name included.
        models: The models to compare.
        generation: How they write.
        judging: How their outputs are judged.
        further_judges: Name to a further judge of the same questions; only who it is and how many questions are under
            way is read, the rest is that of ``judging``.
        statistics: How intervals are computed.
        scoring: What is scored beside the outputs; ``None`` for nothing.
        turns: Whether prompts of several turns are asked, and how their answers are judged.
        baseline: Name of the model that the others are compared with; ``None``: the first.
        comparisons: ``baseline``, or ``all`` for every model with every other.
        generations_file: Name of the file of outputs.
        judgements_file: Name of the file of answers.
        summary_file: Name of the file of win rates.
        progress: Whether a terminal gets progress bars.
    """

    folder: Path
    prompts: Mapping[str, Any]
    models: Sequence[ModelSpec]
    generation: GenerationSettings
    judging: JudgingSettings
    further_judges: Mapping[str, JudgingSettings] = field(default_factory=dict)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    scoring: ScoringSettings | None = None
    turns: TurnsSettings = field(default_factory=TurnsSettings)
    baseline: str | None = None
    comparisons: Literal["baseline", "all"] = "baseline"
    generations_file: str = "generations.jsonl"
    judgements_file: str = "judgements.jsonl"
    summary_file: str = "summary.json"
    progress: bool = True

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        if self.grades and not names:
            raise ConfigError("models must name at least one model, got none")
        if not self.grades and len(names) < 2:
            raise ConfigError(
                f"models must name at least two models to compare, got {', '.join(names) or 'none'}"
            )
        if self.turns.enabled:
            self._check_turns()
        if self.baseline is not None and self.baseline not in names:
            raise ConfigError(f"baseline must be one of models ({', '.join(names)}), got {self.baseline!r}")
        if self.statistics.arena_hard.enabled and not self.judging.both_orders:
            raise ConfigError(
                "statistics.arena_hard.enabled counts questions with both their games: set judge.both_orders=true"
            )
        if self.scoring is not None and self.generation.engine == "server":
            raise ConfigError(
                "scoring.reference needs the models' own files, and generation.engine=server has none of them: leave "
                "scoring out, or let another engine write"
            )

    def _check_turns(self) -> None:
        if self.generation.num_samples != 1:
            raise ConfigError(
                f"generation.num_samples is {self.generation.num_samples}, and conversations are written once: set "
                "it to 1, or turns.enabled=false"
            )
        if self.scoring is not None:
            raise ConfigError(
                "scoring.reference has no effect while turns.enabled is true: leave scoring out"
            )
        if not (self.judging.both_orders or self.grades):
            raise ConfigError("turns.judging=pairs asks in both orders: set judge.both_orders=true")
        if self.statistics.arena_hard.enabled:
            raise ConfigError(
                "statistics.arena_hard.enabled has no effect while turns.enabled is true: leave it out"
            )

    @property
    def grades(self) -> bool:
        """Whether each answer is graded by itself."""
        return self.turns.enabled and self.turns.judging == "grades"

    @property
    def measures_kl(self) -> bool:
        """Whether the outputs are samples of the models' own distributions, as an estimate of KL needs."""
        how = self.generation
        return self.scoring is not None and how.samples and how.temperature == 1 and how.top_p == 1

    @property
    def baseline_name(self) -> str:
        """The baseline's name."""
        return self.baseline or self.models[0].name

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Which models are compared; where the baseline takes part, it stands second."""
        base = self.baseline_name
        others = [model.name for model in self.models if model.name != base]
        pairs = [(other, base) for other in others]
        return pairs + list(combinations(others, 2)) if self.comparisons == "all" else pairs

    def asked_of(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the settings that a model's outputs are made with, those left out that change only the speed."""
        generation = asdict(self.generation)
        for name in ("batch_size", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager"):
            del generation[name]
        for name in ("min_new_tokens", "max_model_len", "quantization"):
            # Version 0.2 did not know them, and its folders are to be found again.
            if not generation[name]:
                del generation[name]
        del generation["server"]
        if self.generation.engine == "server":
            generation["server"] = self.generation.server.identity()
        asked = {"model": asdict(spec), "generation": generation, "prompts": dict(self.prompts)}
        return asked | ({"temperatures": self.turns.temperatures} if self.turns.enabled else {})
