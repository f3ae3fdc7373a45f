"""Models of an evaluation that need no generation: a set's known answers, and outputs written elsewhere.

``dataset:reference`` stands for the prompts' known answers, ``outputs:FILE`` for a file in AlpacaEval's form
(``instruction``, ``output``, ``generator``) or, where its name ends in ``.jsonl``, in the form of Arena-Hard's and
MT-Bench's ``model_answer``, here, on the hub or in an installed package (see ``data.named_files``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.data.named_files import local_file
from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange import answers_to_prompt, import_alpaca_outputs, import_answers
from dynamic_dpo.eval.lint import lint_output
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.utils.hashing import content_hash

REFERENCE = "dataset:reference"
OUTPUTS_PREFIX = "outputs:"


class WrittenModel(NamedTuple):
    """What identifies one model's outputs.

    Attributes:
        fingerprint: Of model and settings; stands in every line of the file.
        provenance: What went into it, for reports.
    """

    fingerprint: str
    provenance: dict[str, Any]


class ModelOutputs(NamedTuple):
    """One model's outputs.

    Attributes:
        outputs: In the order of prompts and samples.
        left_out: Prompt id to why there is none.
    """

    outputs: list[OutputRecord]
    left_out: dict[str, str]


def is_ready(spec: ModelSpec) -> bool:
    """Return whether a model's outputs are there already.

    Example:
        >>> is_ready(ModelSpec("human", REFERENCE)), is_ready(ModelSpec("m", "runs/dpo"))
        (True, False)
    """
    return spec.path == REFERENCE or spec.path.startswith(OUTPUTS_PREFIX)


def identify_ready(spec: ModelSpec) -> WrittenModel:
    """Return what identifies outputs that are there.

    Raises:
        DataError: If their file cannot be read.
    """
    if spec.path == REFERENCE:
        return WrittenModel(content_hash(REFERENCE), {"path": REFERENCE})
    digest = hashlib.sha256(_read(outputs_file(spec))).hexdigest()
    return WrittenModel(content_hash({"outputs": digest}), {"path": spec.path, "file_sha256": digest})


def ready_outputs(spec: ModelSpec, prompts: Sequence[PromptRecord]) -> ModelOutputs:
    """Return the outputs that are there for prompts.

    Args:
        spec: The model; its name replaces the one in the file.
        prompts: The prompts.

    Returns:
        Known answers count as one sample each; prompts without an output in a file are left out with that reason.

    Raises:
        DataError: If a known answer is missing, or the file is malformed, has outputs of several models or none for
            these prompts.
    """
    if spec.path == REFERENCE:
        without = sum(prompt.reference is None for prompt in prompts)
        if without:
            raise DataError(
                f"models.{spec.name} is {REFERENCE}, but {without} of {len(prompts)} prompts have no known answer: "
                "set dataset.summary_field to the field that holds it, or compare with a model"
            )
        return ModelOutputs([_output(spec, prompt.id, 0, prompt.reference or "") for prompt in prompts], {})
    path = outputs_file(spec)
    _read(path)
    if path.suffix == ".jsonl":
        return _answers(spec, path, prompts)
    found = import_alpaca_outputs(path).outputs
    names = sorted({output.model for output in found})
    if len(names) > 1:
        raise DataError(
            f"{path} holds outputs of {len(names)} models ({', '.join(names)}): give one file a model"
        )
    by_prompt: dict[str, list[OutputRecord]] = {}
    for output in found:
        by_prompt.setdefault(output.id, []).append(output)
    if prompts and not any(prompt.id in by_prompt for prompt in prompts):
        raise DataError(
            f"{path} has no output for any of the {len(prompts)} prompts: are its instructions from dataset.name?"
        )
    outputs = [
        _output(spec, prompt.id, output.sample, output.text)
        for prompt in prompts
        for output in by_prompt.get(prompt.id, [])
    ]
    left_out = {prompt.id: f"no output in {path.name}" for prompt in prompts if prompt.id not in by_prompt}
    return ModelOutputs(outputs, left_out)


def _answers(spec: ModelSpec, path: Path, prompts: Sequence[PromptRecord]) -> ModelOutputs:
    found = import_answers(path)
    answers = {prompt.id: answers_to_prompt(found, prompt) for prompt in prompts}
    if prompts and not any(answers.values()):
        raise DataError(
            f"{path} has no answer to any of the {len(prompts)} prompts: its lines are found by the prompts' uid or "
            "question_id; are its questions from dataset.name?"
        )
    outputs = [_output(spec, id_, 0, turns[0]) for id_, turns in answers.items() if turns]
    left_out = {id_: f"no answer in {path.name}" for id_, turns in answers.items() if not turns}
    return ModelOutputs(outputs, left_out)


def _output(spec: ModelSpec, id_: str, sample: int, text: str) -> OutputRecord:
    return OutputRecord(id_, spec.name, sample, text, 0, True, lint_output(text))


def outputs_file(spec: ModelSpec) -> Path:
    """Return where the outputs of a model ``outputs:FILE`` are."""
    return local_file(spec.path.removeprefix(OUTPUTS_PREFIX))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the outputs {path} cannot be read: {error.strerror}") from None
