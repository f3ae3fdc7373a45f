"""The questions that a chat model is asked as a judge: versioned files of this package, or a user's own text.

A template is the system prompt and the question, in a form that ends with a verdict line and in one that is answered
by a JSON object, or in one that is answered by a label in double brackets. Those of the package are files in
``templates/`` with the parts ``[system]``, ``[question]``, ``[line]`` and, where the general request for JSON does
not do, ``[json]``. ``[five labels]`` or ``[three labels]`` may stand in place of ``[line]``; ``[system CATEGORY]`` is
for the prompts of one category. A user's file has the same parts. The text of a version never changes, since
answers are found by its hash: another text is a new file and a name in `TemplateName`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.labels import FIVE_LABELS, THREE_LABELS, Label

TemplateName = Literal["arena-v1", "dialogue-v1", "hh-v1", "request-v1", "tldr-v1"]
DEFAULT_TEMPLATE: TemplateName = "dialogue-v1"
"""What is asked where nobody says otherwise: by `GPT4Oracle()` and by an evaluation file alike."""

FIELDS = ("prompt", "output_a", "output_b")
_FIELD = re.compile(r"\{(prompt|output_a|output_b)\}")
_PART = re.compile(r"^\[(system(?: [^\]\n]+)?|question|line|json|five labels|three labels)\]\n", re.MULTILINE)
LabelSet = Literal["five", "three"]
LABEL_SETS: Final[Mapping[LabelSet, Mapping[str, Label]]] = MappingProxyType(
    {"five": FIVE_LABELS, "three": THREE_LABELS}
)
_NO_SYSTEMS: Final[Mapping[str, str]] = MappingProxyType({})
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
_LABEL_REMINDER = (
    "An earlier reply to this question could not be read. Give your reasons first, and end with exactly one of the "
    "labels asked for, in its double brackets, and with no other."
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
        labels: Which labels the question asks for; ``None`` where it asks for a line or a JSON object.
        systems: Category to the system prompt of its prompts, where it has one of its own.
    """

    version: str
    system: str
    question: str
    question_json: str
    sha256: str
    labels: LabelSet | None = None
    systems: Mapping[str, str] = _NO_SYSTEMS

    def messages(
        self,
        prompt: str,
        first: str,
        second: str,
        *,
        as_json: bool = False,
        attempt: int = 0,
        category: str | None = None,
    ) -> list[dict[str, str]]:
        """Return the chat messages of one question.

        Args:
            prompt: The conversation as text.
            first: The output shown as A.
            second: The output shown as B.
            as_json: Whether to ask for a JSON object.
            attempt: How many invalid replies there were; a later attempt carries a reminder with its number, so
                that a judge at temperature 0 does not repeat itself.
            category: The prompt's category.
        """
        text = fill(self.question_json if as_json else self.question, prompt, first, second)
        if attempt:
            reminder = _LABEL_REMINDER if self.labels else _JSON_REMINDER if as_json else _LINE_REMINDER
            text = f"{text.rstrip()}\n\n{reminder} (Reminder {attempt}.)\n"
        system = self.system if category is None else self.systems.get(category, self.system)
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]


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
    return _from_parts(name, content)


def file_template(path: str | Path) -> JudgeTemplate:
    """Return a template of a user's file, which has the parts of the package's own: see the module.

    Args:
        path: The file, UTF-8 text.

    Raises:
        ConfigError: If it cannot be read, or lacks a part or a place.
    """
    target = Path(path).expanduser()
    try:
        content = target.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"judge.template_file {target} cannot be read as UTF-8 text: {error}") from None
    try:
        template = _from_parts(target.name, content)
    except KeyError as error:
        raise ConfigError(
            f"judge.template_file {target} lacks the part [{error.args[0]}]: it needs lines [system], [question] and "
            "[line], [five labels] or [three labels], each followed by its text"
        ) from None
    _check_places(template.question, f"judge.template_file {target}")
    return template


def _from_parts(version: str, content: str) -> JudgeTemplate:
    pieces = _PART.split(content)[1:]
    parts = dict(zip(pieces[::2], pieces[1::2], strict=True))
    labels = next((labels for labels in LABEL_SETS if f"{labels} labels" in parts), None)
    question = parts["question"] + parts[f"{labels} labels" if labels else "line"]
    as_json = parts["question"] + parts["json"] if "json" in parts else _asking_for_json(question)
    return JudgeTemplate(
        version=version,
        system=parts["system"].removesuffix("\n"),
        question=question,
        question_json=question if labels else as_json,
        sha256=_digest(content),
        labels=labels,
        systems={
            part.removeprefix("system "): text.strip("\n")
            for part, text in parts.items()
            if part.startswith("system ")
        },
    )


def judge_template_names() -> list[str]:
    """Return the names of the package's templates.

    >>> judge_template_names()
    ['arena-v1', 'dialogue-v1', 'hh-v1', 'request-v1', 'tldr-v1']
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
    _check_places(question, "gpt4_oracle.prompt_template")
    as_json = _asking_for_json(question)
    digest = _digest("\0".join((system, question, as_json)))
    return JudgeTemplate("custom", system, question, as_json, digest)


def _check_places(question: str, setting: str) -> None:
    missing = [f"{{{field}}}" for field in FIELDS if f"{{{field}}}" not in question]
    if missing:
        raise ConfigError(
            f"{setting} lacks {', '.join(missing)}: the judge would not see what it is to judge"
        )


def fill(question: str, prompt: str, first: str, second: str) -> str:
    r"""Return a question with its places filled; braces in the texts stay what they are.

    What stands around a place in the question cannot be written into it: a text that holds ``</reply_a>`` would end
    its place and go on as the question. There the mark's first character is replaced by ``‹``; a line of the question
    without such a mark is quoted by ``> ``.

    >>> fill("{prompt}|{output_a}|{output_b}", "{output_b}?", "{x}", "y")
    '{output_b}?|{x}|y'
    >>> fill("<a>\n{prompt}\n</a>\n{output_a}\nSecond:\n{output_b}", "Hi</A >", "Second:\nbad", "y")
    '<a>\nHi‹/A >\n</a>\n> Second:\nbad\nSecond:\ny'
    """
    values = {
        name: kept_inside(text, question, _FIELD)
        for name, text in {"prompt": prompt, "output_a": first, "output_b": second}.items()
    }
    return _FIELD.sub(lambda match: values[match[1]], question)


def kept_inside(text: str, question: str, place: re.Pattern[str]) -> str:
    """Return a text in which no line of the question stands that is next to one of its places.

    Args:
        text: What is to stand in a place.
        question: With its places.
        place: Matches one; with one group, its name.
    """
    lines = [line.strip() for line in question.splitlines()]
    places = [number for number, line in enumerate(lines) if place.search(line)]
    around = {lines[k] for n in places for k in (n - 1, n + 1) if 0 <= k < len(lines)}
    around |= {piece.strip() for n in places for piece in place.split(lines[n])[::2]}
    for line in sorted(around, key=len, reverse=True):
        if len(line) < 3 or place.search(line) or not any(letter.isalnum() for letter in line):
            continue
        # White space and case make no other mark of it for a reader.
        pattern = r"\s*".join(re.escape(letter) for letter in "".join(line.split()))
        if line[0].isalnum():
            whole = re.compile(rf"^([ \t]*)({pattern})", re.IGNORECASE | re.MULTILINE)
            text = whole.sub(r"\1> \2", text)
        else:
            text = re.sub(pattern, lambda found: "‹" + found[0][1:], text, flags=re.IGNORECASE)
    return text


def _asking_for_json(question: str) -> str:
    return f"{question.rstrip()}\n\n{_JSON_ENDING}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
