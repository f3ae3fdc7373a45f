"""The sections of an evaluation file on judging, scoring and counting: the judge, what it may cost, the intervals.

Which keys of ``judge`` mean something depends on its kind, and stands in the table of judges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dynamic_dpo.config.base import Section, refuse
from dynamic_dpo.config.from_settings import settings_section
from dynamic_dpo.config.sections.evaluation import OracleSection
from dynamic_dpo.eval.judges.table import JUDGES
from dynamic_dpo.eval.judges.template import TemplateName
from dynamic_dpo.eval.statistics.alpaca_eval.settings import AlpacaEvalSettings
from dynamic_dpo.eval.statistics.arena.settings import ArenaSettings

if TYPE_CHECKING:
    JudgeKindName = str
else:
    JudgeKindName = Literal[tuple(JUDGES)]
JudgeTemplateName = Literal["custom", TemplateName]


class BudgetSection(Section):
    """Limits on all that the file of judgements has cost, earlier runs included; null: no limit."""

    calls: int | None = Field(default=None, ge=0, description="Replies, invalid ones included.")
    tokens: int | None = Field(default=None, ge=0, description="Tokens of questions and replies together.")
    money: float | None = Field(default=None, ge=0, description="In the currency of judge.prices.")


class PriceSection(Section):
    """Price of one judging model, in any one currency."""

    input: float = Field(ge=0, description="Per million tokens of questions.")
    output: float = Field(ge=0, description="Per million tokens of replies.")


class _OneJudge(Section):
    """Who judges, and how it is asked."""

    kind: JudgeKindName = Field(
        default="openai",
        description="A chat model behind OpenAI's protocol, the same judging by the probabilities of two tokens, a "
        "reward model, or a Python function.",
    )
    base_url: str | None = Field(
        default=None,
        description="Address of the server, often ending in /v1; null: OPENAI_BASE_URL, else OpenAI's own.",
    )
    reward_model: str | None = Field(
        default=None, description="Sequence classifier with one output: hub name or folder."
    )
    function: str | None = Field(
        default=None,
        description="Function from prompt and output to a score, as package.module:name; "
        "dynamic_dpo.eval.rewards:vader is one.",
    )
    template: JudgeTemplateName = Field(
        default="custom",
        description="Question put to a chat model: a versioned one, or custom for a text of your own.",
    )
    template_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with a question of your own, where judge.template is custom: the parts [system], "
        "[question] and [line], [five labels] or [three labels]; null: that of gpt4_oracle. For kind token_choice a "
        "prompt in AlpacaEval's form: a path, hf://datasets/OWNER/NAME/FILE or package:NAME/FILE.",
    )
    choice_tokens: list[str] = Field(
        default=[],
        description="For kind token_choice: the token that means the output shown first, and the one for the second.",
    )
    concurrency: int = Field(default=4, ge=1, description="Questions under way at a time.")
    max_invalid_retries: int = Field(
        default=2,
        ge=0,
        description="How often a question is asked again whose reply holds no verdict, before it counts as invalid.",
    )
    tie_tolerance: float = Field(
        default=0.0, ge=0, description="Largest difference of two scores that is a tie; not for chat models."
    )
    batch_size: int = Field(default=8, ge=1, description="Outputs that a reward model scores at once.")
    logprobs: bool = Field(
        default=False,
        description="Take the likeliest verdict by the log-probabilities of its token, where the server gives them.",
    )
    json_schema: bool = Field(
        default=False, description="Ask for reasons and verdict as JSON, where the server can."
    )

    @field_validator("*")
    @classmethod
    def _belongs_to_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        key, kind = str(info.field_name), info.data.get("kind")
        if kind is None:  # It comes first; where it is wrong itself, that is said.
            return value
        is_of_some_kind = any(key in other.settings for other in JUDGES.values())
        # Of a key with a default that is on, nobody can tell whether it was meant.
        is_given = value and not cls.model_fields[key].get_default()
        if is_of_some_kind and is_given and key not in JUDGES[kind].settings:
            refuse(f"has no effect while judge.kind is {kind}: leave it out")
        if key == kind and not value:
            refuse(f"is required while judge.kind is {kind}")
        template = info.data.get("template")
        if key == "template_file" and value and template not in (None, "custom"):
            refuse(f"has no effect while judge.template is {template}: leave one of the two out")
        return value


class JudgeSection(_OneJudge):
    """Who judges, and how it is asked; the settings of a chat model that judges are in gpt4_oracle."""

    both_orders: bool = Field(
        default=True,
        description="Ask every comparison as A, B and as B, A; otherwise once, in the order that "
        "gpt4_oracle.randomize_order says.",
    )
    budget: BudgetSection = Field(default_factory=BudgetSection)
    prices: dict[str, PriceSection] = Field(
        default={}, description="Price of each judging model, by its name."
    )


class FurtherJudgeSection(_OneJudge):
    """One more judge of the same questions; their orders, the budget and the prices are those of section judge."""

    gpt4_oracle: OracleSection | None = Field(
        default=None, description="Its chat model, with kind openai; null: that of section gpt4_oracle."
    )

    @field_validator("gpt4_oracle")
    @classmethod
    def _orders_are_those_of_all(cls, value: OracleSection | None) -> OracleSection | None:
        for key in ("randomize_order", "seed"):
            if value is not None and getattr(value, key) != OracleSection.model_fields[key].default:
                refuse(
                    f"has {key}, which has no effect here: all judges see the orders of section gpt4_oracle"
                )
        return value


class ArenaHardSection(settings_section("statistics.arena_hard", ArenaSettings)):  # type: ignore[misc]
    """Arena-Hard's score, beside the win rates."""


class AlpacaEvalSection(settings_section("statistics.alpaca_eval", AlpacaEvalSettings)):  # type: ignore[misc]
    """AlpacaEval 2's numbers, beside the win rates."""


class StatisticsSection(Section):
    """How uncertain the win rates are said to be."""

    bootstrap: int = Field(default=2000, ge=100, description="Resamples of the prompts.")
    seed: int = Field(default=0, ge=0, description="Seed of the resampling.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    arena_hard: ArenaHardSection = Field(default_factory=ArenaHardSection)
    alpaca_eval: AlpacaEvalSection = Field(default_factory=AlpacaEvalSection)


class ScoringSection(Section):
    """Log-probabilities beside the judge: drift from the reference, implicit rewards on held-out pairs."""

    reference: str | None = Field(
        default=None, min_length=1, description="Model that training started from; null: nothing is scored."
    )
    pairs: str | None = Field(
        default=None, description="Held-out preference pairs, as dataset.name; null: none."
    )
    subset: str = Field(
        default="train", min_length=1, description="Split of the pairs with an optional slice."
    )
    chat_template: bool = Field(
        default=False, description="Render text pairs with each model's chat template."
    )
    max_length: int = Field(default=512, ge=2, description="Longest prompt plus answer of a pair, in tokens.")
    beta: float = Field(default=0.1, gt=0, description="Scale of the rewards.")

    @field_validator("pairs")
    @classmethod
    def _needs_a_reference(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("reference") is None:
            refuse("has no effect without scoring.reference: name the model that training started from")
        return value
