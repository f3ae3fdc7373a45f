"""Two answers side by side and a verdict on them: HelpSteer's preferences, and arena conversations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.shapes.options import ShapeOptions

_RESPONSES: Final = (("response1", "response2"), ("response_1", "response_2"))
_STRENGTHS: Final = ("overall_preference", "preference_strength", "preference")
_WINNERS: Final = {"model_a": "a", "a": "a", "model_b": "b", "b": "b"}


def is_strength(row: Mapping[str, Any]) -> bool:
    """Return whether a row has two responses and how strongly one is preferred."""
    return _names(row) is not None and any(name in row for name in _STRENGTHS)


def by_strength(row: Mapping[str, Any], options: ShapeOptions) -> dict[str, Any]:
    """Rewrite a row of HelpSteer's preferences: a negative strength prefers the first response, another the second.

    As the cards of HelpSteer2 (Wang et al. 2024, https://arxiv.org/abs/2410.01257) and HelpSteer3 (Wang et al. 2025,
    https://arxiv.org/abs/2503.04378) say; 0 is a tie.

    Raises:
        BadRow: ``tie``, or ``no_verdict`` where the strength is no number.
    """
    names = _names(row)
    assert names is not None
    column = next(name for name in _STRENGTHS if name in row)
    strength = row[column]
    if isinstance(strength, bool) or not isinstance(strength, int | float) or strength != strength:
        raise BadRow("no_verdict", f"{column} is {strength!r}")
    if strength == 0:
        raise BadRow("tie", f"{column} is 0")
    better, worse = names if strength < 0 else names[::-1]
    rest = {name: value for name, value in row.items() if name not in (*names, column, "context")}
    if isinstance(row.get("context"), list | str) and row.get("prompt") is None:
        rest["prompt"] = row["context"]
    return {**rest, "chosen": row[better], "rejected": row[worse]}


def is_arena(row: Mapping[str, Any]) -> bool:
    """Return whether a row has two whole conversations and a winner."""
    return isinstance(row.get("conversation_a"), list) and "winner" in row


def by_winner(row: Mapping[str, Any], options: ShapeOptions) -> dict[str, Any]:
    """Rewrite a row of an arena, whose ``winner`` is ``model_a``, ``model_b`` or some kind of tie.

    Raises:
        BadRow: ``tie``, or ``no_verdict`` where the winner is nobody that is known.
    """
    winner = str(row["winner"]).strip().lower()
    if winner.startswith("tie") or winner in ("both_bad", "bothbad"):
        raise BadRow("tie", f"winner is {row['winner']!r}")
    side = _WINNERS.get(winner)
    if side is None:
        raise BadRow("no_verdict", f"winner is {row['winner']!r}")
    rest = {
        name: value
        for name, value in row.items()
        if name not in ("conversation_a", "conversation_b", "winner", "prompt")
    }
    sides = {"a": row["conversation_a"], "b": row.get("conversation_b")}
    return {**rest, "chosen": sides.pop(side), "rejected": next(iter(sides.values()))}


def _names(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((names for names in _RESPONSES if all(name in row for name in names)), None)
