"""A section for every method with settings, made from the method's own dataclass.

Types, defaults, ranges and meanings stand beside the method and nowhere else; this module only lists the methods and
says which of their keys a run would not read.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

from pydantic import Field, create_model

from dynamic_dpo.config.base import Document, Section
from dynamic_dpo.config.phrases import given
from dynamic_dpo.methods.alpha_dpo import AlphaDPO
from dynamic_dpo.methods.beta_dpo import BetaDPO
from dynamic_dpo.methods.dpo import DPO
from dynamic_dpo.methods.epsilon_dpo import EpsilonDPO
from dynamic_dpo.methods.hinge import Hinge
from dynamic_dpo.methods.ipo import IPO
from dynamic_dpo.methods.robust import Robust
from dynamic_dpo.methods.settings import BOUNDS
from dynamic_dpo.methods.simpo import SimPO
from dynamic_dpo.methods.wpo import WPO

if TYPE_CHECKING:
    from dynamic_dpo.methods.base import PreferenceMethod

DocumentT = TypeVar("DocumentT", bound=Document)

MethodName = Literal[
    "dpo",
    "risk",
    "schedule",
    "robust",
    "ipo",
    "hinge",
    "simpo",
    "wpo",
    "beta_dpo",
    "epsilon_dpo",
    "alpha_dpo",
]
LossName = Literal["dpo", "robust", "ipo", "hinge", "simpo", "wpo"]

CONTROLLERS = ("risk", "schedule")
# Modules of methods load no torch; those of the controllers do, and their keys stand in sections of their own.
METHODS_WITH_SETTINGS: tuple[type[PreferenceMethod], ...] = (
    DPO,
    Robust,
    IPO,
    Hinge,
    SimPO,
    WPO,
    BetaDPO,
    EpsilonDPO,
    AlphaDPO,
)
WHY_NOT_STEERED = {
    method.name: method.why_not_steered for method in METHODS_WITH_SETTINGS if method.why_not_steered
}
_WITHOUT_REFERENCE = {method.name for method in METHODS_WITH_SETTINGS if not method.needs.reference}


def method_section(method: type[PreferenceMethod]) -> type[Section]:
    """Return the section of a method's settings."""
    settings: Any = method.Settings
    kinds = get_type_hints(settings)
    keys: dict[str, Any] = {}
    for entry in fields(settings):
        about = entry.metadata
        bounds = {name: about[name] for name in BOUNDS if name in about}
        # In a file, a beta that is left out is the run's beta_0.
        is_beta = about.get("null_is_beta_0", False)
        kind = kinds[entry.name] | None if is_beta else kinds[entry.name]
        default = about["in_files"] if is_beta else entry.default
        keys[entry.name] = (kind, Field(default=default, description=about["description"], **bounds))
    steered = "" if method.why_not_steered else " or method.loss"
    return create_model(
        settings.__name__.replace("Config", "Section"),
        __base__=Section,
        __doc__=f"Read where method.name{steered} is {method.name}.",
        **keys,
    )


def with_method_sections(document: type[DocumentT]) -> type[DocumentT]:
    """Return ``document`` with a section for each of `METHODS_WITH_SETTINGS`, under the method's name."""
    sections = {method.name: method_section(method) for method in METHODS_WITH_SETTINGS}
    keys: dict[str, Any] = {
        name: (section, Field(default_factory=section)) for name, section in sections.items()
    }
    return create_model("WithMethodSections", __base__=document, **keys)


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
    if config.ref_name is not None and read in _WITHOUT_REFERENCE:
        lines.append(
            f"ref_name has no effect with {read}, which needs no reference: remove it, got {given(config.ref_name)}"
        )
    chosen = f"method.name {name} and method.loss {loss}" if steers else f"method.name {name}"
    for section_name in (method.name for method in METHODS_WITH_SETTINGS):
        section = getattr(config, section_name)
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if value == field.default:
                continue
            if section_name != name and not (steers and section_name == loss):
                lines.append(
                    f"{section_name}.{key} has no effect with {chosen}: remove it, or choose {section_name}, "
                    f"got {given(value)}"
                )
            elif section_name != name and key == "beta":
                lines.append(
                    f"{section_name}.beta has no effect with method.name {name}, which moves beta from "
                    f"beta_update.beta_0: set that instead, got {given(value)}"
                )
    return lines
