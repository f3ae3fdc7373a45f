"""The questions about conversations of several turns: the package's own, or the published ones from a user's file.

The package's are one file for any number of turns. A user's file is FastChat's ``judge_prompts.jsonl``, whose
questions are for one turn and for two, each with reference answers and without.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.template import kept_inside

OWN = "turns-v1"
_PART = re.compile(r"^\[(grade system|compare system|grade|compare|references)\]\n", re.MULTILINE)
_PLACE = re.compile(r"\{(\w+)\}")
_REMINDER = (
    "An earlier reply to this question could not be read. Give your reasons first, and end with exactly one {what} "
    "in double brackets, and with no other."
)
# FastChat's names, by what is asked, whether there are reference answers, and whether it is about the second turn.
PUBLISHED = {
    ("grade", False, False): "single-v1",
    ("grade", True, False): "single-math-v1",
    ("grade", False, True): "single-v1-multi-turn",
    ("grade", True, True): "single-math-v1-multi-turn",
    ("compare", False, False): "pair-v2",
    ("compare", True, False): "pair-math-v1",
    ("compare", False, True): "pair-v2-multi-turn",
    ("compare", True, True): "pair-math-v1-multi-turn",
}


class Conversation(NamedTuple):
    """What a user asked, and what one model answered, up to the turn that is judged.

    Attributes:
        questions: The user's turns.
        answers: The model's, as many.
        references: Right answers to the turns, as many; empty where there are none.
    """

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class TurnsTemplate:
    """One way to ask about conversations.

    Attributes:
        version: ``turns-v1``, or the name of the user's file.
        sha256: Hash of all its texts.
        parts: The package's parts.
        published: FastChat's questions by their name; empty for the package's own.
    """

    version: str
    sha256: str
    parts: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def grading(self, shown: Conversation, *, attempt: int = 0) -> list[dict[str, str]]:
        """Return the chat messages that ask for a grade of the last answer.

        Args:
            shown: The conversation.
            attempt: How many invalid replies there were; a later attempt carries a reminder with its number.

        Raises:
            ConfigError: If a user's file has no question for it.
        """
        texts = {"conversation": _text(shown.questions, shown.answers)}
        return self._messages("grade", shown, {"answer": shown.answers}, texts, attempt, "grade from 1 to 10")

    def comparing(
        self, first: Conversation, second: Conversation, *, attempt: int = 0
    ) -> list[dict[str, str]]:
        """Return the chat messages that ask which of two last answers is better; as for `grading`."""
        texts = {
            "conversation_a": _text(first.questions, first.answers),
            "conversation_b": _text(second.questions, second.answers),
        }
        answers = {"answer_a": first.answers, "answer_b": second.answers}
        return self._messages("compare", first, answers, texts, attempt, "of the labels asked for")

    def _messages(
        self,
        kind: str,
        shown: Conversation,
        answers: Mapping[str, tuple[str, ...]],
        texts: Mapping[str, str],
        attempt: int,
        what: str,
    ) -> list[dict[str, str]]:
        if self.published:
            system, question = self._published(kind, shown, answers)
        else:
            known = ""
            if shown.references:
                right = {"answers": _text(shown.questions, shown.references, who="Right answer")}
                known = _fill(self.parts["references"], right)
            system = self.parts[f"{kind} system"].removesuffix("\n")
            question = _fill(self.parts[kind], {**texts, "references": known})
        if attempt:
            question = f"{question.rstrip()}\n\n{_REMINDER.format(what=what)} (Reminder {attempt}.)\n"
        return [{"role": "system", "content": system}, {"role": "user", "content": question}]

    def _published(
        self, kind: str, shown: Conversation, answers: Mapping[str, tuple[str, ...]]
    ) -> tuple[str, str]:
        num_turns = len(shown.questions)
        if num_turns > 2:
            raise ConfigError(
                f"{self.version} has questions for one turn and for two, and a prompt has {num_turns}: leave "
                "turns.template_file out"
            )
        name = PUBLISHED[kind, bool(shown.references), num_turns == 2]
        if name not in self.published:
            raise ConfigError(f"{self.version} lacks the question {name!r}, which these prompts need")
        entry = self.published[name]
        values = {f"ref_answer_{n}": text for n, text in enumerate(shown.references, start=1)}
        if num_turns == 1:
            values |= {"question": shown.questions[0]} | {key: given[0] for key, given in answers.items()}
        else:
            values |= {f"question_{n}": text for n, text in enumerate(shown.questions, start=1)}
            values |= {
                f"{key}_{n}": text for key, given in answers.items() for n, text in enumerate(given, start=1)
            }
        return entry["system_prompt"], _fill(entry["prompt_template"], values)


def own_template() -> TurnsTemplate:
    """Return the package's template.

    >>> own_template().version
    'turns-v1'
    """
    content = (files(__package__) / "templates" / f"{OWN}.txt").read_text(encoding="utf-8")
    pieces = _PART.split(content)[1:]
    return TurnsTemplate(OWN, _digest(content), parts=dict(zip(pieces[::2], pieces[1::2], strict=True)))


def published_template(path: str | Path) -> TurnsTemplate:
    """Return the questions of FastChat's ``judge_prompts.jsonl``.

    Args:
        path: The file.

    Raises:
        ConfigError: If it cannot be read, or holds none of these questions.
    """
    target = Path(path).expanduser()
    try:
        content = target.read_text(encoding="utf-8")
        rows: list[Any] = [json.loads(line) for line in content.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"turns.template_file {target} cannot be read as JSON lines: {error}") from None
    published: dict[str, dict[str, str]] = {}
    for row in rows:
        if isinstance(row, dict) and row.get("name") in PUBLISHED.values():
            texts = {key: row.get(key) for key in ("system_prompt", "prompt_template")}
            published[row["name"]] = {key: text for key, text in texts.items() if isinstance(text, str)}
            if len(published[row["name"]]) < len(texts):
                raise ConfigError(
                    f"turns.template_file {target}: the question {row['name']!r} must have the texts system_prompt "
                    "and prompt_template"
                )
    if not published:
        raise ConfigError(
            f"turns.template_file {target} holds none of the questions {', '.join(PUBLISHED.values())}: is it "
            "FastChat's judge_prompts.jsonl?"
        )
    return TurnsTemplate(target.name, _digest(content), published=published)


def _text(questions: tuple[str, ...], answers: tuple[str, ...], *, who: str = "Assistant") -> str:
    turns = zip(questions, answers, strict=True)
    # An answer cannot let the user, or itself once more, speak.
    speaker = re.compile(rf"^([ \t]*)((?:User|{re.escape(who)})\s*:)", re.IGNORECASE | re.MULTILINE)
    said = ((question, speaker.sub(r"\1> \2", answer)) for question, answer in turns)
    return "\n\n".join(f"User: {question}\n\n{who}: {answer}" for question, answer in said)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its places filled; braces in the values, and in code, stay what they are.

    What stands around a place in the text cannot be written into it, as in the questions about single answers. The
    part with right answers is the template's own and is taken as it is.
    """
    kept = {
        name: value if name == "references" else kept_inside(value, text, _PLACE)
        for name, value in values.items()
    }
    return _PLACE.sub(lambda match: kept.get(match[1], match[0]), text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
