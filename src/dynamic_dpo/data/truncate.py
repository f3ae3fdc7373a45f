"""Truncation of one tokenised pair: what gives way where prompt and answers exceed the length.

It belongs to the pair, before any layout, so that both answers always follow the same prompt. Pure functions
on lists of ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.errors import ConfigError

TRUNCATION_MODES: Final = ("keep_start", "keep_end")


@dataclass(frozen=True)
class LengthLimits:
    """Limits in tokens.

    Attributes:
        max_length: Longest prompt plus completion.
        max_prompt_length: Longest prompt, a leading BOS included; its end is kept. None: no limit of its own.
        max_completion_length: Longest completion; its start is kept. None: no limit of its own.
        truncation_mode: ``keep_start`` cuts the completions where a pair is still too long, ``keep_end`` the
            start of the prompt.

    Raises:
        ConfigError: If a limit is not positive, ``max_length`` is below 2, or the mode is unknown.
    """

    max_length: int
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    truncation_mode: str = "keep_start"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(
                f"max_length must be at least 2, one prompt and one answer token, got {self.max_length}"
            )
        for name in ("max_prompt_length", "max_completion_length"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} must be at least 1 or null, got {limit}")
        if self.truncation_mode not in TRUNCATION_MODES:
            raise ConfigError(
                f"truncation_mode must be one of {', '.join(TRUNCATION_MODES)}, got {self.truncation_mode!r}"
            )


class TokenPair(NamedTuple):
    """The ids of a prompt and of what follows it in the two sequences."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def truncate_pair(pair: TokenPair, limits: LengthLimits, *, bos: int | None = None) -> TokenPair:
    """Cut a pair to the limits.

    Args:
        pair: Token ids; the answers not empty.
        limits: What to cut to.
        bos: A token that stays first when a prompt that begins with it is cut from the left.

    Returns:
        A pair with at least one token in each answer, and in the prompt if it had one.

    Raises:
        BadRow: ``prompt_fills_max_length`` if no room is left for an answer, ``identical_after_truncation``
            if what told the answers apart was cut off.

    Example:
        >>> truncate_pair(TokenPair([1, 2, 3], [4, 5, 6], [7]), LengthLimits(max_length=5))
        TokenPair(prompt=[1, 2, 3], chosen=[4, 5], rejected=[7])
        >>> truncate_pair(TokenPair([1, 2, 3], [4, 5, 6], [7]), LengthLimits(5, truncation_mode="keep_end"))
        TokenPair(prompt=[2, 3], chosen=[4, 5, 6], rejected=[7])
    """
    prompt, chosen, rejected = pair
    if limits.max_prompt_length is not None:
        prompt = _keep_end(prompt, limits.max_prompt_length, bos)
    if limits.max_completion_length is not None:
        chosen = chosen[: limits.max_completion_length]
        rejected = rejected[: limits.max_completion_length]
    if limits.truncation_mode == "keep_end":
        room = limits.max_length - max(len(chosen), len(rejected))
        prompt = _keep_end(prompt, max(1, room), bos)
    room = limits.max_length - len(prompt)
    if room < 1:
        raise BadRow(
            "prompt_fills_max_length", f"{len(prompt)} prompt tokens, max_length {limits.max_length}"
        )
    chosen, rejected = chosen[:room], rejected[:room]
    if chosen == rejected:
        reason = "identical_answers" if (chosen, rejected) == pair[1:] else "identical_after_truncation"
        raise BadRow(reason, f"the same first {len(chosen)} answer tokens")
    return TokenPair(prompt, chosen, rejected)


def _keep_end(prompt: list[int], limit: int, bos: int | None) -> list[int]:
    if len(prompt) <= limit:
        return prompt
    if limit > 1 and bos is not None and prompt[0] == bos:
        return [bos, *prompt[len(prompt) - limit + 1 :]]
    return prompt[len(prompt) - limit :]
