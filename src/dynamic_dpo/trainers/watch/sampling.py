"""Samples while a training goes on: fixed prompts answered by the policy as it is, and nothing of the run changed.

The first rank writes, behind the same token ids each time, with random numbers of each prompt's own; all ranks log
the same. Random state, modes of modules and gradients are as they were afterwards.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from dynamic_dpo.errors import CheckpointError, ConfigError, DataError
from dynamic_dpo.eval.generate.batched import WrittenIds, continue_ids
from dynamic_dpo.eval.generate.decoder import forward_parameters
from dynamic_dpo.eval.judges.base import Scorer, checked_scores
from dynamic_dpo.eval.prompts.render import Prompt, prompt_key, render_prompt
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.runs.files import SAMPLES
from dynamic_dpo.runs.samples import Row, SamplingConfig, kept_rows, repetition_rate, sample_figures
from dynamic_dpo.trainers.ranks import on_main_process
from dynamic_dpo.trainers.watch.sample_tables import show_in_trackers
from dynamic_dpo.utils.files import write_refused, write_text
from dynamic_dpo.utils.hashing import content_hash
from dynamic_dpo.utils.json_lines import JsonLinesFile, json_line

logger = logging.getLogger("dynamic_dpo")

# Rows that are looked at for distinct prompts.
_ROWS_LOOKED_AT = 1000


@dataclass(frozen=True)
class Sampling:
    """What a training is to write samples for.

    Attributes:
        prompts: Texts, continued as they stand, or lists of chat messages; ``None``: the first distinct prompts of
            the held-out rows, as the training reads them.
        settings: When and how.
        scorers: Scorers of outputs by a name each; they are called on the first rank.

    Example:
        >>> Sampling(["Once upon a time"], SamplingConfig(every=100)).settings.every
        100
    """

    prompts: Sequence[Prompt] | None = None
    settings: SamplingConfig = field(default_factory=SamplingConfig)
    scorers: Mapping[str, Scorer] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """A prompt as the model reads it, and as a reader and a scorer do."""

    id: str
    ids: tuple[int, ...]
    text: str
    record: PromptRecord


class RunSamples(TrainerCallback):  # type: ignore[misc]
    """Writes a run's samples into its folder, its log and its trackers.

    Args:
        trainer: The run's trainer, a `ResumableTrainer`.
        sampling: What to write.
        reference: Gives the context in which the reference can be computed with: a model, or ``None`` where it is not
            in memory. By default it never is.

    Attributes:
        num_times: Times at which samples were written by this process.
        seconds: What they took.

    Raises:
        ConfigError: If the model is spread over the ranks.
        DataError: If a prompt is unusable, or there is none.
        ModelError: If chat messages meet a tokenizer without a template.
    """

    def __init__(
        self,
        trainer: Any,
        sampling: Sampling,
        *,
        reference: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        if trainer.is_fsdp_enabled:
            raise ConfigError(
                "sampling writes with the whole model on one rank, and FSDP2 spreads it over all of them: leave "
                "sampling out, or train with DDP"
            )
        self.trainer = trainer
        self.settings = sampling.settings
        self.scorers = sampling.scorers
        self.num_times, self.seconds = 0, 0.0
        self._reference = reference
        self._prompts = self._asked(sampling)
        self._file: JsonLinesFile | None = None
        # Rows of the first time, which later ones are compared with.
        self._first: list[Row] = []
        self._last_step: int | None = None

    # ---- when ----

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the file for as long as a training goes on."""
        self._close()
        try:
            yield
        finally:
            self._close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the samples of the starting model, or those that a stop has left undone."""
        every = self.settings.every
        if state.global_step == 0 or (every is not None and state.global_step % every == 0):
            self.write()

    def is_due(self, state: Any) -> bool:
        """Return whether the step that has just been made asks for samples, whatever is evaluated after it."""
        every = self.settings.every
        is_last = state.global_step >= state.max_steps
        return is_last or (every is not None and state.global_step % every == 0)

    @property
    def comes_with_evaluations(self) -> bool:
        """Whether every evaluation asks for samples."""
        return self.settings.every is None

    # ---- what ----

    def write(self) -> None:
        """Write the samples of the present step, unless they are written; log what is counted. Collective over ranks.

        Raises:
            CheckpointError: If a disk refuses the file.
            DataError: If it is damaged or another process writes to it.
            JudgeError: If a scorer fails.
        """
        entry = on_main_process(self.trainer.accelerator, self._write)
        if entry:
            self.trainer.log_beside(entry)

    def summary(self) -> dict[str, Any]:
        """Return what the run's record says: times, outputs and seconds of this process."""
        return {
            "times": self.num_times,
            "outputs": self.num_times * len(self._prompts),
            "seconds": self.seconds,
        }

    def _write(self) -> dict[str, float]:
        step, began = self.trainer.state.global_step, time.perf_counter()
        with _clear_file_errors(self._path):
            file = self._opened_file(step)
        if self._last_step == step:
            return {}
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with unchanged(model):
            with self.trainer.accelerator.autocast():
                rows, divergences = self._answered(model, step)
            for name, scorer in self.scorers.items():
                for row, score in zip(rows, self._scores(scorer, rows), strict=True):
                    row["scores"][name] = score
        with _clear_file_errors(self._path):
            file.append_all(rows)
        self._last_step = step
        self._first = self._first or rows
        show_in_trackers(self.trainer.callback_handler.callbacks, rows, step)
        seconds = time.perf_counter() - began
        self.num_times += 1
        self.seconds += seconds
        return {**sample_figures(rows), **divergences, "speed/sampling_seconds": seconds}

    def _answered(self, model: Any, step: int) -> tuple[list[Row], dict[str, float]]:
        """Return the lines of a time, and estimates of how far the policy has gone."""
        settings, tokenizer = self.settings, self.trainer.processing_class
        outputs = continue_ids(
            model,
            tokenizer,
            [prompt.ids for prompt in self._prompts],
            names=[prompt.id for prompt in self._prompts],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature or 1.0,
            top_p=settings.top_p,
            do_sample=settings.temperature > 0,
            batch_size=settings.batch_size,
            seed=settings.seed,
            progress=False,
        )
        rows = [
            _row(step, prompt, output, tokenizer)
            for prompt, output in zip(self._prompts, outputs, strict=True)
        ]
        if not settings.draws_from_the_model:
            return rows, {}
        for row, logp in zip(rows, self._logps(model, rows), strict=True):
            row["logp"] = logp
        return rows, self._divergences(model, rows)

    def _scores(self, scorer: Scorer, rows: Sequence[Row]) -> list[float]:
        items = iter([(prompt.record, row["text"]) for prompt, row in zip(self._prompts, rows, strict=True)])
        scores: list[float] = []
        while batch := list(islice(items, scorer.batch_size)):
            scores += checked_scores(scorer, batch)
        return scores

    def _divergences(self, model: Any, rows: list[Row]) -> dict[str, float]:
        """Return estimates of Kullback-Leibler divergences, nats a token, from outputs that a model itself has drawn.

        The mean over outputs of the difference of both log-probabilities has the divergence as its expectation, from
        the model that drew them to the other.
        """
        found = {}
        known = {prompt.id for prompt in self._prompts}
        first = [row for row in self._first or rows if row["prompt_id"] in known and "logp" in row]
        if first:
            found["samples/kl_from_start"] = _mean_fall(first, self._logps(model, first))
        with self._reference() as reference:
            if reference is not None:
                with unchanged(reference):
                    found["samples/kl"] = _mean_fall(rows, self._logps(reference, rows))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _logps(self, model: Any, rows: Sequence[Row]) -> list[float]:
        """Return each output's log-probability, its stop token's included, in nats."""
        ids_of = {prompt.id: prompt.ids for prompt in self._prompts}
        with torch.no_grad():
            return [_logp(model, ids_of[row["prompt_id"]], row["token_ids"]) for row in rows]

    # ---- the file ----

    @property
    def _path(self) -> Path:
        return Path(self.trainer.args.output_dir) / SAMPLES

    def _opened_file(self, step: int) -> JsonLinesFile:
        """Return the file, cut to what comes before the step that the run goes on from."""
        if self._file is None:
            path = self._path
            if step == 0 and path.exists():
                logger.warning("an earlier run's samples were moved to %s", _moved_away(path))
            kept = kept_rows(path, until=step, num_prompts=len(self._prompts))
            if path.exists():
                write_text(path, "".join(map(json_line, kept)))
            self._file = JsonLinesFile(path, keep=())
            self._first = [row for row in kept if row["step"] == kept[0]["step"]]
            self._last_step = kept[-1]["step"] if kept else None
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._first, self._last_step = None, [], None

    # ---- the prompts ----

    def _asked(self, sampling: Sampling) -> list[_Asked]:
        tokenizer = self.trainer.processing_class
        if sampling.prompts is not None and not len(sampling.prompts):
            raise DataError(
                "sampling has no prompts: give some, or leave them out for those of the held-out rows"
            )
        if sampling.prompts is None:
            ids = self._prompts_of_rows()
            return [_as_read(prompt, tokenizer) for prompt in ids]
        asked = [_as_given(prompt, tokenizer) for prompt in sampling.prompts]
        return list({prompt.id: prompt for prompt in asked}.values())

    def _prompts_of_rows(self) -> list[tuple[int, ...]]:
        """Return the first distinct prompts of the held-out rows, else of the training rows, that leave room."""
        held_out = self.trainer.eval_dataset
        if isinstance(held_out, Mapping):
            held_out = next(iter(held_out.values()), None)
        rows = self.trainer.train_dataset if held_out is None else held_out
        limit = getattr(self.trainer.model.config, "max_position_embeddings", None) or math.inf
        found: dict[tuple[int, ...], None] = {}
        for row in islice(rows or (), _ROWS_LOOKED_AT):
            prompt = _prompt_ids(row)
            if prompt and len(prompt) + self.settings.max_new_tokens <= limit:
                found[prompt] = None
            if len(found) == self.settings.num_prompts:
                break
        if not found:
            raise DataError(
                f"sampling found no prompt that leaves the model room for {self.settings.max_new_tokens} tokens "
                "(sampling.max_new_tokens): lower it, or give prompts"
            )
        return list(found)


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, and leave it and all random state as they were."""
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        model.eval()
        try:
            yield
        finally:
            for module, was_training in modes:
                module.training = was_training
            random.setstate(states[0])
            np.random.set_state(states[1])


def _row(step: int, prompt: _Asked, output: WrittenIds, tokenizer: Any) -> Row:
    stop, ids = output.stop_token_id, output.token_ids
    repetition = repetition_rate(ids)
    return {
        "step": step,
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "text": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        "num_tokens": len(ids),
        "finished": stop is not None,
        "repetition": None if math.isnan(repetition) else repetition,
        "scores": {},
        # With the stop token, so that they can be scored as they were drawn.
        "token_ids": [*ids] if stop is None else [*ids, stop],
    }


def _mean_fall(rows: Sequence[Row], logps: Sequence[float]) -> float:
    """Return by how much outputs are less likely than to the model that drew them, in nats a token."""
    num_tokens = sum(len(row["token_ids"]) for row in rows)
    return math.fsum(row["logp"] - logp for row, logp in zip(rows, logps, strict=True)) / num_tokens


def _logp(model: Any, prompt: Sequence[int], output: Sequence[int]) -> float:
    """Return a completion's summed log-probability, nats."""
    ids = torch.tensor([[*prompt, *output]], device=model.device)
    needed = len(output) + 1
    # Those of the prompt would take memory for nothing; old models give them all.
    fewer = {"logits_to_keep": needed} if "logits_to_keep" in forward_parameters(model) else {}
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **fewer).logits[0, -needed:-1]
    logps = logits.float().log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
    total: float = logps.double().sum().item()
    return total


def _as_given(prompt: Prompt, tokenizer: Any) -> _Asked:
    ids = tuple(render_prompt(tokenizer, prompt))
    if isinstance(prompt, str):
        return _Asked(prompt_key(prompt), ids, prompt, PromptRecord.of([{"role": "user", "content": prompt}]))
    messages = [{str(key): str(value) for key, value in message.items()} for message in prompt]
    return _Asked(prompt_key(prompt), ids, tokenizer.decode(ids), PromptRecord.of(messages))


def _as_read(ids: tuple[int, ...], tokenizer: Any) -> _Asked:
    text = tokenizer.decode(ids)
    return _Asked(content_hash(list(ids)), ids, text, PromptRecord.of([{"role": "user", "content": text}]))


def _prompt_ids(row: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the prompt of a row of preferences, or of a conversation: what comes before its first answer."""
    if "prompt_ids" in row:
        return tuple(row["prompt_ids"])
    # TRL has made labels of the mask, where it has tokenised.
    trained = row.get("completion_mask") or [label >= 0 for label in row.get("labels", ())]
    return tuple(row["input_ids"][: trained.index(1)]) if 1 in trained else ()


def _moved_away(path: Path) -> Path:
    number = 1
    while (moved := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
        number += 1
    return path.rename(moved)


@contextmanager
def _clear_file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = write_refused(error) or "look at the folder"
        raise CheckpointError(
            f"samples cannot be written to {path}: {error}. {advice}; then resume: what comes after the last "
            "checkpoint is written again"
        ) from error
