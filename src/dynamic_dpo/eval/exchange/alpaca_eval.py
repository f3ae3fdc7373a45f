"""Outputs and verdicts in AlpacaEval's files: ``model_outputs.json`` and annotations.

They hold less than our records (no order of the outputs, no sample numbers, prompts of one string) and sometimes
more (shades of preference); what is lost on the way is said at each function.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange.files import (
    Entry,
    entries_of_list,
    number_or_none,
    prompt_of,
    questions_between,
    string_field,
)
from dynamic_dpo.eval.lint import lint_output
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.hashing import content_hash


class Imported(NamedTuple):
    """What a file of another evaluation held.

    Attributes:
        prompts: The prompts, each once.
        outputs: The outputs; their lengths in tokens are not known.
        judgements: The verdicts; empty for a file of outputs.
    """

    prompts: list[PromptRecord]
    outputs: list[OutputRecord]
    judgements: list[JudgementRecord]


def instruction_of(prompt: PromptRecord) -> str:
    """Return a prompt as the one string that AlpacaEval knows.

    >>> instruction_of(PromptRecord.of([{"role": "user", "content": "Hi"}]))
    'Hi'
    >>> brief, hi = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    >>> instruction_of(PromptRecord.of([brief, hi]))
    'system: Be brief.\\n\\nuser: Hi'
    """
    if len(prompt.messages) == 1 and prompt.messages[0].get("role") == "user":
        return prompt.messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages)


def export_alpaca_outputs(
    path: str | Path, prompts: Sequence[PromptRecord], outputs: Sequence[OutputRecord], model: str
) -> Path:
    """Write one model's outputs as AlpacaEval's ``model_outputs.json``.

    Args:
        path: The file.
        prompts: The prompts, in the order in which the entries are to stand, for AlpacaEval finds the difficulty of
            an instruction by its place; their category becomes ``dataset``.
        outputs: Any outputs; those of other models are passed over. Samples follow each other.
        model: Whose outputs; becomes ``generator``.

    Raises:
        DataError: If there is no output of the model, or one of them has no prompt.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    order = {prompt.id: number for number, prompt in enumerate(prompts)}
    own = sorted(
        (output for output in outputs if output.model == model), key=lambda o: (o.sample, order.get(o.id, -1))
    )
    if not own:
        names = ", ".join(sorted({output.model for output in outputs})) or "none"
        raise DataError(f"there are no outputs of {model!r} to export; models with outputs: {names}")
    entries = [
        {
            "instruction": instruction_of(prompt_of(by_id, output.id)),
            "output": output.text,
            "generator": model,
            "dataset": prompt_of(by_id, output.id).category or "",
        }
        for output in own
    ]
    return _write_json(path, entries)


def import_alpaca_outputs(path: str | Path, prompts: Sequence[PromptRecord] | None = None) -> Imported:
    """Read AlpacaEval's ``model_outputs.json``.

    Args:
        path: The file. A second output of a generator to an instruction becomes its sample 1, and so on.
        prompts: Prompts that the instructions belong to; ``None`` makes one of every instruction.

    Raises:
        DataError: If the file is malformed, or an instruction is none of ``prompts``.
    """
    reader = _Reader(prompts)
    counted: Counter[tuple[str, str]] = Counter()
    for place, entry in entries_of_list(Path(path)):
        prompt = reader.prompt(entry, place)
        model = string_field(entry, "generator", place)
        reader.write(
            prompt.id,
            model,
            counted[prompt.id, model],
            string_field(entry, "output", place, may_be_empty=True),
        )
        counted[prompt.id, model] += 1
    return reader.imported()


def export_alpaca_annotations(
    path: str | Path,
    prompts: Sequence[PromptRecord],
    outputs: Sequence[OutputRecord],
    judgements: Sequence[JudgementRecord],
    *,
    model: str,
    baseline: str,
    judge: str,
    places: Mapping[str, int] | None = None,
) -> Path:
    """Write verdicts as AlpacaEval's annotations, the baseline as output 1 and the model as output 2.

    AlpacaEval knows one number for a question: 1 for output 1, 2 for output 2, between them for doubt. It is the
    judge's weight where the verdict token's probabilities are known, else the verdict; both orders of ours are
    averaged into it. A question without a valid verdict gets ``null``, which AlpacaEval leaves out. What
    `import_alpaca_annotations` has read goes out with every number unchanged, fields included that have no place in
    our records.

    Args:
        path: The file.
        prompts: The prompts, in the order in which the entries are to stand: AlpacaEval finds the difficulty of an
            instruction by its place.
        outputs: The outputs that were judged.
        judgements: Any judgements; others than those between the two models by this judge are passed over.
        model: Becomes ``generator_2``.
        baseline: Becomes ``generator_1``.
        judge: Becomes ``annotator``.
        places: Prompt id to its place in AlpacaEval's set, which becomes ``index``: needed where the prompts are not
            all of the set in its order.

    Raises:
        DataError: If there is no such judgement, or a prompt or output is missing.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    order = {prompt.id: number for number, prompt in enumerate(prompts)}
    texts = {(output.id, output.sample, output.model): output.text for output in outputs}
    questions = questions_between(judgements, model, baseline, judge)
    entries = []
    for prompt_id, sample in sorted(questions, key=lambda asked: (order.get(asked[0], -1), asked[1])):
        records = questions[prompt_id, sample]
        weights = [weight for record in records if (weight := record.preference(model)) is not None]
        prompt = prompt_of(by_id, prompt_id)
        entries.append(
            {
                "instruction": instruction_of(prompt),
                "output_1": _text(texts, prompt_id, sample, baseline),
                "generator_1": baseline,
                "output_2": _text(texts, prompt_id, sample, model),
                "generator_2": model,
                "dataset": prompt.category or "",
                "annotator": judge,
                "preference": 1.0 + math.fsum(weights) / len(weights) if weights else None,
                "raw_completion": "\n\n".join(record.reason for record in records if record.reason),
                "price_per_example": math.fsum(record.cost for record in records),
                **({} if places is None or prompt_id not in places else {"index": places[prompt_id]}),
                **(records[0].meta if len(records) == 1 else {}),
            }
        )
    return _write_json(path, entries)


def import_alpaca_annotations(path: str | Path, prompts: Sequence[PromptRecord] | None = None) -> Imported:
    """Read AlpacaEval's annotations.

    AlpacaEval does not say which output the annotator saw first: every judgement comes back with output 1 first,
    so nothing can be learned from it about position bias. A weighted preference becomes a verdict for the side it
    leans to, with its weight in ``prob_first``, which the weighted win rate averages. What has no place in a record
    (dates, seconds, the judge's reply as tokens) is in its ``meta``.

    Args:
        path: The file.
        prompts: Prompts that the instructions belong to; ``None`` makes one of every instruction.

    Raises:
        DataError: If the file is malformed, or an instruction is none of ``prompts``.
    """
    reader = _Reader(prompts)
    for place, entry in entries_of_list(Path(path)):
        prompt = reader.prompt(entry, place)
        models = [string_field(entry, f"generator_{k}", place) for k in (1, 2)]
        if models[0] == models[1]:
            raise DataError(
                f"{place}: generator_1 and generator_2 are both {models[0]!r}; nothing is compared"
            )
        texts = [string_field(entry, f"output_{k}", place, may_be_empty=True) for k in (1, 2)]
        verdict, prob_first = _preference(entry.get("preference"), place)
        judge, reply = entry.get("annotator"), entry.get("raw_completion")
        reader.judge(
            prompt.id,
            judge if isinstance(judge, str) and judge else "alpaca_eval",
            models,
            texts,
            verdict=verdict,
            reason=reply if isinstance(reply, str) else "",
            prob_first=prob_first,
            cost=number_or_none(entry.get("price_per_example")) or 0.0,
            meta=_without_a_place(entry),
        )
    return reader.imported()


class _Reader:
    """Gathers entries: equal instructions are one prompt, and what repeats is a further sample."""

    def __init__(self, prompts: Sequence[PromptRecord] | None) -> None:
        self.known = None if prompts is None else {instruction_of(prompt): prompt for prompt in prompts}
        self.prompts: dict[str, PromptRecord] = {}
        self.outputs: dict[tuple[str, str, int], OutputRecord] = {}
        self.judgements: dict[str, JudgementRecord] = {}

    def prompt(self, entry: Entry, place: str) -> PromptRecord:
        instruction = string_field(entry, "instruction", place)
        if entry.get("input"):  # AlpacaFarm's older field for the material of an instruction.
            instruction = f"{instruction}\n\n{string_field(entry, 'input', place)}"
        if self.known is None:
            dataset = entry.get("dataset")
            prompt = PromptRecord.of(
                [{"role": "user", "content": instruction}],
                category=dataset if isinstance(dataset, str) and dataset else None,
            )
        elif instruction in self.known:
            prompt = self.known[instruction]
        else:
            raise DataError(f"{place}: the instruction {instruction[:60]!r} is none of the given prompts")
        return self.prompts.setdefault(prompt.id, prompt)

    def write(self, prompt_id: str, model: str, sample: int, text: str) -> None:
        output = OutputRecord(prompt_id, model, sample, text, 0, finished=True, flags=lint_output(text))
        self.outputs[prompt_id, model, sample] = output

    def judge(
        self, prompt_id: str, judge: str, models: Sequence[str], texts: Sequence[str], **rest: Any
    ) -> None:
        # The first sample whose places are free or hold these very texts: the baseline's one output, repeated with
        # every model, stays one, and a second verdict of a judge is a second sample.
        for sample in itertools.count():
            key = content_hash([prompt_id, sample, judge, *sorted(models)])
            slots = [self.outputs.get((prompt_id, model, sample)) for model in models]
            fits = all(slot is None or slot.text == text for slot, text in zip(slots, texts, strict=True))
            if fits and key not in self.judgements:
                break
        for model, text in zip(models, texts, strict=True):
            self.write(prompt_id, model, sample, text)
        self.judgements[key] = JudgementRecord(
            key, prompt_id, sample, judge, first=models[0], second=models[1], **rest
        )

    def imported(self) -> Imported:
        return Imported(
            list(self.prompts.values()), list(self.outputs.values()), list(self.judgements.values())
        )


def _preference(value: Any, place: str) -> tuple[str, float | None]:
    """Return verdict and probability of output 1. 0 is the older sign of a tie, NaN pandas' sign of null."""
    if value is None or value != value:
        return "invalid", None
    number = number_or_none(value)
    if number is None or not (number == 0 or 1 <= number <= 2):
        raise DataError(f"{place}: 'preference' must lie between 1 and 2 (or be 0 or null), got {value!r}")
    if number in (0, 1.5):
        return "tie", None
    return ("A" if number < 1.5 else "B"), (None if number in (1, 2) else 2.0 - number)


_WITH_A_PLACE = (
    "instruction", "input", "output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator", "preference"
)  # fmt: skip


def _without_a_place(entry: Entry) -> dict[str, Any]:
    """Return the fields of an entry that a record cannot hold as they are."""
    rest = {key: value for key, value in entry.items() if key not in _WITH_A_PLACE}
    if isinstance(entry.get("raw_completion"), str):
        del rest["raw_completion"]
    if number_or_none(entry.get("price_per_example")) is not None:
        del rest["price_per_example"]
    # An older sign of a tie than 1.5.
    return rest | ({"preference": entry["preference"]} if entry.get("preference") == 0 else {})


def _text(texts: Mapping[tuple[str, int, str], str], prompt_id: str, sample: int, model: str) -> str:
    if (prompt_id, sample, model) not in texts:
        raise DataError(
            f"the output {sample} of {model!r} on prompt {prompt_id!r} was judged but is not given"
        )
    return texts[prompt_id, sample, model]


def _write_json(path: str | Path, entries: list[Entry]) -> Path:
    return write_text(path, json.dumps(entries, indent=2) + "\n")
