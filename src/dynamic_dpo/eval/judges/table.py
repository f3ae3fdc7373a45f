"""The kinds of judge that an evaluation file can name: the only list of them.

A further kind is a file in this folder with a function that makes the judge, and a line here. A setting that no other
kind reads also needs a field in the file's section ``judge``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

from dynamic_dpo.eval.judges.base import Judge


class JudgeKind(NamedTuple):
    """How judges of one kind are made.

    Attributes:
        maker: ``module:function`` of this package; imported when a judge is made, and called with the
            settings by keyword.
        settings: Keys of the section ``judge`` that the kind reads. ``gpt4_oracle`` is that section as a whole,
            ``device`` is ``generation.device``.
        sees_order: Whether one question shows the judge both outputs, so that their order can sway it.
    """

    maker: str
    settings: tuple[str, ...]
    sees_order: bool = True


JUDGES: Final[dict[str, JudgeKind]] = {
    "openai": JudgeKind(
        "chat_judge:openai_judge",
        (
            "gpt4_oracle",
            "base_url",
            "template",
            "template_file",
            "max_invalid_retries",
            "logprobs",
            "json_schema",
        ),
    ),
    "token_choice": JudgeKind(
        "token_choice:token_choice_judge",
        ("gpt4_oracle", "base_url", "template_file", "choice_tokens", "max_invalid_retries"),
    ),
    "reward_model": JudgeKind(
        "reward_model:reward_model_judge",
        ("reward_model", "batch_size", "tie_tolerance", "device"),
        sees_order=False,
    ),
    "function": JudgeKind("function:function_judge", ("function", "tie_tolerance"), sees_order=False),
}


def make_judge(kind: str, settings: Mapping[str, Any]) -> Judge:
    """Make a judge; its model is loaded, or its server asked, with the first question.

    Args:
        kind: A name in `JUDGES`.
        settings: Values of at least the settings that the kind reads.

    Raises:
        ConfigError: If a setting cannot be carried out.

    Example:
        >>> make_judge("function", {"function": "math.sqrt", "tie_tolerance": 0.1}).name
        'math.sqrt'
    """
    module, _, function = JUDGES[kind].maker.partition(":")
    maker = getattr(import_module(f"{__package__}.{module}"), function)
    judge: Judge = maker(**{key: settings[key] for key in JUDGES[kind].settings})
    return judge
