"""A Python function as a judge: the output with the higher score wins.

The function is named by a dotted path and gets the output, or the prompt and the output.
"""

from __future__ import annotations

import hashlib
import inspect
import numbers
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from dynamic_dpo.errors import ConfigError, JudgeError
from dynamic_dpo.eval.judges.base import PointwiseJudge, conversation_text
from dynamic_dpo.eval.records import PromptRecord


class FunctionScorer:
    """Score outputs with a function; `PointwiseJudge` makes a judge of it.

    Args:
        path: ``package.module:function`` or ``package.module.function``.
        setting: What messages call the setting that names it.

    Raises:
        ConfigError: If there is no such function, or it takes neither an output nor a prompt and an output.

    Example:
        >>> scorer = FunctionScorer("dynamic_dpo.eval.rewards:vader")
        >>> scorer.score(PromptRecord.of([{"role": "user", "content": "Well?"}]), "Great!") > 0
        True
    """

    batch_size = 1

    def __init__(self, path: str, *, setting: str = "judge.function") -> None:
        self.path = path.replace(":", ".")
        self.name = path
        self._function = load_function(path, setting=setting)
        self._takes_prompt = _takes_prompt(self._function, f"{setting} {path!r}")

    def fingerprint(self) -> dict[str, Any]:
        """Return the function's path and a hash of its source, so that a changed function scores anew."""
        try:
            source: str | None = inspect.getsource(self._function)
        except (OSError, TypeError):
            source = None
        digest = hashlib.sha256(source.encode()).hexdigest() if source is not None else None
        return {"kind": "function", "function": self.path, "source_sha256": digest}

    def score(self, prompt: PromptRecord, text: str) -> float:
        """Return the function's score of one output.

        Raises:
            JudgeError: If the function fails or returns no number.
        """
        arguments = (conversation_text(prompt.messages), text) if self._takes_prompt else (text,)
        try:
            value = self._function(*arguments)
        except JudgeError:
            raise
        except Exception as error:
            raise JudgeError(
                f"the judge function {self.name} failed on the output {text[:80]!r} of prompt {prompt.id}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise JudgeError(
                f"the judge function {self.name} must return a number, got {value!r:.80} of type "
                f"{type(value).__name__} for the output {text[:80]!r}"
            )
        return float(value)

    def score_many(self, items: Sequence[tuple[PromptRecord, str]]) -> list[float]:
        """Return the scores of several outputs, in their order."""
        return [self.score(prompt, text) for prompt, text in items]


def function_judge(*, function: str, tie_tolerance: float) -> PointwiseJudge:
    """Return the judge that ``judge.kind: function`` means.

    Args:
        function: See `FunctionScorer`.
        tie_tolerance: See `PointwiseJudge`.

    Raises:
        ConfigError: If there is no such function, or the tolerance is negative.
    """
    return PointwiseJudge(FunctionScorer(function), tie_tolerance=tie_tolerance)


def load_function(path: str, *, setting: str = "judge.function") -> Callable[..., Any]:
    """Import a function.

    Args:
        path: ``package.module:function`` or ``package.module.function``.
        setting: What messages call the setting that names it.

    Returns:
        The function, or anything else that can be called.

    Raises:
        ConfigError: If the path has no such form, the module cannot be imported, or it has no such function.

    Example:
        >>> load_function("math.sqrt")(9.0)
        3.0
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not all(part.isidentifier() for part in [*module_name.split("."), *name.split(".")]):
        raise ConfigError(
            f"{setting} must have the form package.module:function, got {path!r}, such as "
            "dynamic_dpo.eval.rewards:vader"
        )
    try:
        value: Any = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{setting} {path!r}: cannot import {module_name!r} ({error}); install the package, or put the "
            "module's folder on PYTHONPATH"
        ) from None
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            public = [
                other for other in dir(value) if callable(getattr(value, other)) and not other.startswith("_")
            ]
            raise ConfigError(
                f"{setting} {path!r}: {module_name!r} has no {name!r}; it has "
                f"{', '.join(public[:20]) or 'no function'}"
            ) from None
    if not callable(value):
        raise ConfigError(
            f"{setting} {path!r} is a {type(value).__name__}, expected a function that takes an output, or a "
            "prompt and an output"
        )
    return value  # type: ignore[no-any-return]


def _takes_prompt(function: Callable[..., Any], called: str) -> bool:
    """Return whether the function's own arguments are prompt and output, or the output alone."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C
        return False
    needed = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    for num_arguments in (1, 2):
        try:
            signature.bind(*[""] * num_arguments)
        except TypeError:
            continue
        # f(*args) takes both; f(text, lower=True) means its second argument otherwise.
        return num_arguments == 2 or (len(needed) == 0 and _takes_any(signature))
    raise ConfigError(
        f"{called} takes {signature}, expected one argument (the output) or two (the prompt and the output)"
    )


def _takes_any(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in signature.parameters.values())
