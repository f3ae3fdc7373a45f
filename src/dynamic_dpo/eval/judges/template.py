"""The questions that a chat model is asked as a judge: versioned files of this package, or a user's own text.

A template is the system prompt and the question, in a form that ends with a verdict line and in one that is answered
by a JSON object. Those of the package are files in ``templates/`` with the parts ``[system]``, ``[question]``,
``[line]`` and, where the general request for JSON does not do, ``[json]``. The text of a version never changes, since
answers are found by its hash: another text is a new file and a name in `TemplateName`.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from typing import Any, Literal, NamedTuple, get_args

from dynamic_dpo.errors import ConfigError

TemplateName = Literal["dialogue-v1", "hh-v1", "request-v1", "tldr-v1"]
DEFAULT_TEMPLATE: TemplateName = "dialogue-v1"
"""What is asked where nobody says otherwise: by `GPT4Oracle()` and by an evaluation file alike."""

FIELDS = ("prompt", "output_a", "output_b")
_FIELD = re.compile(r"\{(prompt|output_a|output_b)\}")
_PART = re.compile(r"^\[(system|question|line|json)\]\n", re.MULTILINE)
_JSON_ENDING = (
    "In place of any other form of answer asked for above, answer with one JSON object and nothing else. Its first "
    'key is "reason" and holds your reasons; its second and last key is "verdict": exactly "A", "B" or "tie".\n'
)
_LINE_REMINDER = (
    "An earlier reply to this question could not be read. Give your reasons first, and end with one line that is "
    "exactly one of: Verdict: A, Verdict: B, Verdict: tie."
)
_JSON_REMINDER = (
    "An earlier reply to this question could not be read. Answer with one JSON object and nothing else, with the "
    'keys "reason" and "verdict"; the verdict is exactly "A", "B" or "tie".'
)
# The reasons come first here too, so that the verdict follows from them.
VERDICT_SCHEMA: dict[str, Any] = {
    "name": "verdict",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "verdict": {"type": "string", "enum": ["A", "B", "tie"]},
        },
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    },
}


class JudgeTemplate(NamedTuple):
    """One way to ask.

    Attributes:
        version: Name with version, such as ``hh-v1``; ``custom`` for texts that were given as such, be they the
            default's.
        system: What the judge is and what counts for it.
        question: One comparison with ``{prompt}``, ``{output_a}`` and ``{output_b}``, to be answered with reasons
            and a last line ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie``.
        question_json: The same, to be answered with a JSON object of ``reason`` and ``verdict``.
        sha256: Hash of all the texts.
    """

    version: str
    system: str
    question: str
    question_json: str
    sha256: str

    def messages(
        self, prompt: str, first: str, second: str, *, as_json: bool = False, attempt: int = 0
    ) -> list[dict[str, str]]:
        """Return the chat messages of one question.

        Args:
            prompt: The conversation as text.
            first: The output shown as A.
            second: The output shown as B.
            as_json: Whether to ask for a JSON object.
            attempt: How many invalid replies there were; a later attempt carries a reminder with its number, so
                that a judge at temperature 0 does not repeat itself.
        """
        text = fill(self.question_json if as_json else self.question, prompt, first, second)
        if attempt:
            reminder = _JSON_REMINDER if as_json else _LINE_REMINDER
            text = f"{text.rstrip()}\n\n{reminder} (Reminder {attempt}.)\n"
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]


def judge_template(name: str) -> JudgeTemplate:
    """Return one of the package's templates.

    Args:
        name: See `judge_template_names`.

    Returns:
        The template.

    Raises:
        ConfigError: If there is none of that name.

    Example:
        >>> judge_template("hh-v1").version
        'hh-v1'
    """
    if name not in judge_template_names():
        raise ConfigError(
            f"judge.template must be one of {', '.join(judge_template_names())}, got {name!r}; for a text of your "
            "own set gpt4_oracle.system_prompt and gpt4_oracle.prompt_template"
        )
    content = (files(__package__) / "templates" / f"{name}.txt").read_text(encoding="utf-8")
    pieces = _PART.split(content)[1:]
    parts = dict(zip(pieces[::2], pieces[1::2], strict=True))
    question = parts["question"] + parts["line"]
    return JudgeTemplate(
        version=name,
        system=parts["system"].removesuffix("\n"),
        question=question,
        question_json=parts["question"] + parts["json"] if "json" in parts else _asking_for_json(question),
        sha256=_digest(content),
    )


def judge_template_names() -> list[str]:
    """Return the names of the package's templates.

    >>> judge_template_names()
    ['dialogue-v1', 'hh-v1', 'request-v1', 'tldr-v1']
    """
    return list(get_args(TemplateName))


def custom_template(system: str | None = None, question: str | None = None) -> JudgeTemplate:
    """Return a template made of a user's own texts.

    Args:
        system: What the judge is and what counts for it; ``None``: that of `DEFAULT_TEMPLATE`.
        question: One comparison; ``None``: that of `DEFAULT_TEMPLATE`.

    Raises:
        ConfigError: If the question lacks ``{prompt}``, ``{output_a}`` or ``{output_b}``.

    Example:
        >>> custom_template().question == judge_template(DEFAULT_TEMPLATE).question
        True
    """
    default = judge_template(DEFAULT_TEMPLATE)
    system = default.system if system is None else system
    question = default.question if question is None else question
    missing = [f"{{{field}}}" for field in FIELDS if f"{{{field}}}" not in question]
    if missing:
        raise ConfigError(
            f"gpt4_oracle.prompt_template lacks {', '.join(missing)}: the judge would not see what it is to judge"
        )
    as_json = _asking_for_json(question)
    digest = _digest("\0".join((system, question, as_json)))
    return JudgeTemplate("custom", system, question, as_json, digest)


def fill(question: str, prompt: str, first: str, second: str) -> str:
    """Return a question with its places filled; braces in the texts stay what they are.

    >>> fill("{prompt}|{output_a}|{output_b}", "{output_b}?", "{x}", "y")
    '{output_b}?|{x}|y'
    """
    values = {"prompt": prompt, "output_a": first, "output_b": second}
    return _FIELD.sub(lambda match: values[match[1]], question)


def _asking_for_json(question: str) -> str:
    return f"{question.rstrip()}\n\n{_JSON_ENDING}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
