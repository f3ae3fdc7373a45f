"""Writing conversations: every turn of a prompt is asked after the model's own answers to those before.

A turn is a prompt like any other, named by the conversation so far, and goes through the same stage: what is on the
disk is not written again, however often the evaluation was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.exchange import answers_to_prompt, import_answers
from dynamic_dpo.eval.generate.batched import Generation
from dynamic_dpo.eval.generate.engines import TransformersEngine, open_engine
from dynamic_dpo.eval.generate.ready import (
    OUTPUTS_PREFIX,
    ModelOutputs,
    WrittenModel,
    identify_ready,
    is_ready,
    outputs_file,
)
from dynamic_dpo.eval.generate.settings import GenerationSettings, OutputEngine
from dynamic_dpo.eval.generate.stage import read_outputs, write_outputs
from dynamic_dpo.eval.generate.turns_settings import TurnsSettings
from dynamic_dpo.eval.lint import lint_output
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.render import Prompt
from dynamic_dpo.eval.prompts.turns import turn_prompt, turns_of
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.models.adapters import ModelFiles, text_fingerprint
from dynamic_dpo.utils.hashing import content_hash

FINGERPRINTS = "outputs_by_temperature"


class Conversations(NamedTuple):
    """What one model said.

    Attributes:
        answers: Prompt id to its answers, turn by turn; fewer than turns where it could not be asked further.
        left_out: Prompt id to why it could not be asked all turns.
    """

    answers: dict[str, list[OutputRecord]]
    left_out: dict[str, str]


def write_conversations(
    prompts: Sequence[PromptRecord],
    spec: ModelSpec,
    settings: GenerationSettings,
    turns: TurnsSettings,
    path: str | Path,
    *,
    progress: bool = True,
) -> WrittenModel:
    """Let one model answer every turn that is missing.

    Args:
        prompts: The prompts; see `prompts.turns`.
        spec: The model.
        settings: How it writes; one sample a prompt.
        turns: Temperatures by category.
        path: The file of outputs.
        progress: Whether a terminal gets progress bars.

    Returns:
        What identifies the conversations; `read_conversations` finds them by it.

    Raises:
        As `write_outputs` does.
    """
    if is_ready(spec):
        _ready(spec, prompts)  # What is wrong with them is to be said now.
        return identify_ready(spec)
    # Read once, and not for every turn and temperature.
    weights = None if settings.engine == "server" else text_fingerprint(spec.find_files())
    written: dict[str, WrittenModel] = {}
    lender = _Lender()
    try:
        for temperature, group in _groups(prompts, settings, turns).items():
            how = _at(settings, temperature)

            def ask(asked: list[PromptRecord], how: GenerationSettings = how) -> ModelOutputs:
                found = write_outputs(
                    asked, spec, how, path, progress=progress, opener=lender.lend, weights=weights
                )
                written[f"{how.temperature:g}"] = found
                return read_outputs(path, asked, spec, found.fingerprint, 1)

            _converse(group, ask)
    finally:
        lender.close()
    fingerprints = {temperature: found.fingerprint for temperature, found in sorted(written.items())}
    provenance: dict[str, Any] = {**next(iter(written.values())).provenance} if written else {}
    provenance.pop("temperature", None)
    return WrittenModel(content_hash(fingerprints), {**provenance, FINGERPRINTS: fingerprints})


def read_conversations(
    prompts: Sequence[PromptRecord],
    spec: ModelSpec,
    settings: GenerationSettings,
    turns: TurnsSettings,
    path: str | Path,
    written: WrittenModel,
) -> Conversations:
    """Return what one model said, of what a file holds.

    Raises:
        DataError: If a file is damaged.
    """
    if is_ready(spec):
        return _ready(spec, prompts)
    answers: dict[str, list[OutputRecord]] = {}
    left_out: dict[str, str] = {}
    for temperature, group in _groups(prompts, settings, turns).items():
        fingerprint = written.provenance[FINGERPRINTS][f"{temperature:g}"]

        def look_up(asked: list[PromptRecord], fingerprint: str = fingerprint) -> ModelOutputs:
            return read_outputs(path, asked, spec, fingerprint, 1)

        found = _converse(group, look_up)
        answers |= found.answers
        left_out |= found.left_out
    return Conversations(answers, left_out)


def _groups(
    prompts: Sequence[PromptRecord], settings: GenerationSettings, turns: TurnsSettings
) -> dict[float, list[PromptRecord]]:
    groups: dict[float, list[PromptRecord]] = {}
    for prompt in prompts:
        groups.setdefault(turns.temperature_of(prompt.category, settings.temperature), []).append(prompt)
    return dict(sorted(groups.items()))


def _at(settings: GenerationSettings, temperature: float) -> GenerationSettings:
    # Whether to sample follows from the temperature, where that is a category's own.
    if temperature == settings.temperature:
        return settings
    return replace(settings, temperature=temperature, do_sample=None)


def _converse(
    prompts: Sequence[PromptRecord], ask: Callable[[list[PromptRecord]], ModelOutputs]
) -> Conversations:
    """Ask turn after turn; ``ask`` gets the prompts of one turn, all models' answers so far in them."""
    answers: dict[str, list[OutputRecord]] = {prompt.id: [] for prompt in prompts}
    left_out: dict[str, str] = {}
    for turn in range(max((len(turns_of(prompt)) for prompt in prompts), default=0)):
        asked: dict[str, PromptRecord] = {}
        owners: dict[str, list[str]] = {}
        for prompt in prompts:
            said = answers[prompt.id]
            if len(said) == turn < len(turns_of(prompt)):
                record = turn_prompt(prompt, [output.text for output in said])
                asked[record.id] = record
                # Two prompts may be the same up to here.
                owners.setdefault(record.id, []).append(prompt.id)
        found = ask(list(asked.values()))
        for output in found.outputs:
            for id_ in owners[output.id]:
                answers[id_].append(output)
        for record_id, why in found.left_out.items():
            left_out.update(dict.fromkeys(owners[record_id], f"turn {turn + 1}: {why}"))
    return Conversations(answers, left_out)


def _ready(spec: ModelSpec, prompts: Sequence[PromptRecord]) -> Conversations:
    """Return conversations that are there, in the form of MT-Bench's ``model_answer``."""
    if not (spec.path.startswith(OUTPUTS_PREFIX) and spec.path.endswith(".jsonl")):
        raise DataError(
            f"models.{spec.name} is {spec.path}, which has answers to one turn alone: with turns.enabled give "
            "outputs:FILE.jsonl in the form of MT-Bench's model_answer, or a model"
        )
    found = import_answers(outputs_file(spec))
    answers: dict[str, list[OutputRecord]] = {}
    left_out: dict[str, str] = {}
    for prompt in prompts:
        texts = (answers_to_prompt(found, prompt) or [])[: len(turns_of(prompt))]
        answers[prompt.id] = [
            OutputRecord(turn_prompt(prompt, texts[:turn]).id, spec.name, 0, text, 0, True, lint_output(text))
            for turn, text in enumerate(texts)
        ]
        if len(texts) < len(turns_of(prompt)):
            left_out[prompt.id] = f"turn {len(texts) + 1}: no answer in {outputs_file(spec).name}"
    if prompts and not any(answers.values()):
        raise DataError(
            f"{spec.path} has no answer to any of the {len(prompts)} prompts: its lines are found by the prompts' "
            "question_id or uid; are its questions from dataset.name?"
        )
    return Conversations(answers, left_out)


class _Lender:
    """Lends one loaded model to several calls, which would each load it for themselves."""

    def __init__(self) -> None:
        self._engine: OutputEngine | None = None
        self._settings: GenerationSettings | None = None

    def lend(self, files: ModelFiles, settings: GenerationSettings) -> OutputEngine:
        if isinstance(self._engine, TransformersEngine):
            self._engine.settings = settings
        elif self._engine is None or self._settings != settings:
            # Other engines take their settings when they load.
            self.close()
            self._engine = open_engine(files, settings)
        self._settings = settings
        return _Lent(self._engine)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


class _Lent:
    """A lent engine: closing it gives it back."""

    def __init__(self, engine: OutputEngine) -> None:
        self._engine = engine
        self.tokenizer: Any = engine.tokenizer
        self.max_length = engine.max_length
        self.prompts_at_once = engine.prompts_at_once

    def write(self, prompts: Sequence[Prompt]) -> list[Generation]:
        return self._engine.write(prompts)

    def close(self) -> None:
        pass
