"""Which method is run, and a section for every method with settings of its own, made from its dataclass.

Names, choices and sections follow from the table of methods; what is added is which keys a run would not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pydantic import Field, create_model, field_validator

from dynamic_dpo.config.base import Document, Section, refuse
from dynamic_dpo.config.from_settings import contradictions_in, settings_in, settings_section
from dynamic_dpo.config.phrases import given
from dynamic_dpo.methods.objective import ObjectiveConfig, ReferenceSync, why_not_added
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.settings import MAX_NONFINITE
from dynamic_dpo.methods.table import METHODS
from dynamic_dpo.utils.settings import file_keys

if TYPE_CHECKING:
    from dynamic_dpo.methods.base import PreferenceMethod

DocumentT = TypeVar("DocumentT", bound=Document)

CONTROLLERS = tuple(name for name, method in METHODS.items() if method.steers_beta)
ADDED = tuple(name for name, method in METHODS.items() if not why_not_added(method))
STEERED = tuple(name for name, method in METHODS.items() if not method.why_not_steered)

if TYPE_CHECKING:
    MethodName: TypeAlias = str
    LossName: TypeAlias = str
else:
    MethodName = Literal[tuple(METHODS)]
    LossName = Literal[STEERED]


class _Choice(Section):
    name: MethodName = Field(
        default="risk",
        description="What finds beta and the losses: risk (beta follows the risk test), schedule (beta moves by "
        "the clock, the control arm of risk), or a method by its name, see docs/methods.md.",
    )
    loss: LossName = Field(
        default="dpo",
        description="Methods risk and schedule: the method whose beta they move; its section is read, but for "
        "its beta.",
    )

    @field_validator("loss", mode="before")
    @classmethod
    def _has_a_beta_to_move(cls, value: object) -> object:
        # A controller is no loss at all, which the list of choices says.
        if isinstance(value, str) and value in METHODS and value not in (*CONTROLLERS, *STEERED):
            refuse(
                f"cannot be {value}, since {METHODS[value].why_not_steered}: set method.name={value} to train with it"
            )
        return value


class MethodSection(settings_section("method", RiskConfig, base=_Choice)):  # type: ignore[misc]
    """Which method turns margins into beta and losses, and how it is run."""

    max_nonfinite: int = Field(
        default=MAX_NONFINITE,
        ge=0,
        description="Margins that may be NaN or infinite, in total, before the run stops.",
    )


class ReferenceSyncSection(settings_section("reference_sync", ReferenceSync)):  # type: ignore[misc]
    """A reference that follows the policy."""


if TYPE_CHECKING:
    AddedSection = Section
else:
    AddedSection = create_model(
        "AddedSection",
        __base__=Section,
        __doc__="Further losses, each with its weight; their sections are read, but for their beta.",
        **{
            name: (
                float,
                Field(default=0.0, ge=0, description=f"Weight of the loss of method {name}; 0: none."),
            )
            for name in ADDED
        },
    )


class ObjectiveSection(settings_section("objective", ObjectiveConfig)):  # type: ignore[misc]
    """What is changed about the loss of the method, or of the one whose beta it moves."""

    add: AddedSection = Field(default_factory=AddedSection)

    def added(self) -> dict[str, float]:
        """Return the weights of the losses that are added."""
        return {name: weight for name, weight in self.add.model_dump().items() if weight}


def _own_keys(method: type[PreferenceMethod]) -> list[str]:
    """Return the keys of the section that bears the method's name; none where it has no such section."""
    if method.Settings is None:
        return []
    return [key.key for key in file_keys(method.Settings, method.name).values() if key.section == method.name]


def _own_section(method: type[PreferenceMethod]) -> type[Section]:
    steered = "" if method.why_not_steered else " or method.loss"
    assert method.Settings is not None
    keys = settings_section(method.name, method.Settings, own=True)
    return create_model(
        f"{method.__name__}Section",
        __base__=keys,
        __doc__=f"Read where method.name{steered} is {method.name}.",
    )


def with_method_sections(document: type[DocumentT]) -> type[DocumentT]:
    """Return ``document`` with a section for each method that has keys of its own, under the method's name."""
    # Those of controllers first, beside the sections of the risk test.
    methods = sorted(METHODS.values(), key=lambda method: not method.steers_beta)
    sections = {method.name: _own_section(method) for method in methods if _own_keys(method)}
    keys: dict[str, Any] = {
        name: (section, Field(default_factory=section)) for name, section in sections.items()
    }
    return create_model("WithMethodSections", __base__=document, **keys)


def ruled_out(config: Any) -> Iterator[str]:
    """Yield one line for each setting of a method that another setting rules out, and for each that is lacking.

    Args:
        config: The training configuration.
    """
    for name, method in METHODS.items():
        if method.Settings is not None:
            yield from contradictions_in(config, method.Settings, name, is_chosen=name == config.method.name)


def unread_settings(config: Any) -> list[str]:
    """Return one line for each setting of a method that the chosen method does not read, defaults left out.

    Args:
        config: The training configuration. Settings of the controllers are not looked at: a controller and the
            arms it is compared with are run from one file.
    """
    name, loss = config.method.name, config.method.loss
    lines = []
    steers = name in CONTROLLERS
    if not steers and loss != "dpo":
        lines.append(
            f"method.loss has no effect with method.name {name}: only {' and '.join(CONTROLLERS)} move the beta of "
            f"another loss; remove it, or set method.name={loss}, got {given(loss)}"
        )
    read = loss if steers else name
    added = config.objective.added()
    losses = [METHODS[one] for one in (read, *added)]
    objective = ObjectiveConfig(**settings_in(config, ObjectiveConfig))
    lines += [f"objective.{problem}" for problem in objective.problems_with(*losses)]
    sync = ReferenceSync(**settings_in(config, ReferenceSync))
    problems = sync.problems(losses, has_adapter=config.peft is not None)
    lines += [f"reference_sync.{problem}" for problem in problems]
    if read in added:
        lines.append(
            f"objective.add.{read} names the method's own loss: remove it and set objective.weight, got "
            f"{given(added[read])}"
        )
    if config.ref_name is not None and not any(loss.needs.reference for loss in losses):
        names = " and ".join((read, *added))
        lines.append(
            f"ref_name has no effect with {names}, which needs no reference: remove it, got {given(config.ref_name)}"
        )
    chosen = f"method.name {name} and method.loss {loss}" if steers else f"method.name {name}"
    for owner, method in METHODS.items():
        if owner in CONTROLLERS or not _own_keys(method):
            continue
        section = getattr(config, owner)
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if value == field.default:
                continue
            if owner != name and owner not in added and not (steers and owner == loss):
                lines.append(
                    f"{owner}.{key} has no effect with {chosen}: remove it, or choose {owner}, got {given(value)}"
                )
            elif owner != name and key == "beta":
                source = "which moves beta from beta_update.beta_0" if steers else "whose beta it takes"
                instead = "that" if steers else f"{name}.beta"
                lines.append(
                    f"{owner}.beta has no effect with method.name {name}, {source}: set {instead} instead, got "
                    f"{given(value)}"
                )
    return lines
