"""The generation stage: every model writes what it has not written yet, each batch on the disk before the next.

An output is found by a fingerprint of model and settings, prompt id and sample number; other settings make another
fingerprint, so that nothing stale is reused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from tqdm.auto import tqdm

from dynamic_dpo.eval.generate.asking import ask_missing
from dynamic_dpo.eval.generate.engines import open_engine
from dynamic_dpo.eval.generate.ready import (
    ModelOutputs,
    WrittenModel,
    identify_ready,
    is_ready,
    ready_outputs,
)
from dynamic_dpo.eval.generate.rows import OUTPUT_PLACE, left_out_row, missing_samples, output_row
from dynamic_dpo.eval.generate.server import ServerEngine
from dynamic_dpo.eval.generate.settings import GenerationSettings, OutputEngine
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.render import Prompt, model_prompt, render_prompt
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.models.adapters import ModelFiles, pick_device, text_fingerprint
from dynamic_dpo.utils.hashing import content_hash
from dynamic_dpo.utils.json_lines import JsonLinesFile, read_json_lines
from dynamic_dpo.utils.signals import deferred, raise_if_requested

logger = logging.getLogger("dynamic_dpo")


def identify_model(
    spec: ModelSpec, settings: GenerationSettings, *, weights: str | None = None
) -> WrittenModel:
    """Return what identifies the outputs of a model under settings.

    Reads the model's files and loads nothing; a server is asked what it says of the model.

    Args:
        spec: The model.
        settings: How it writes.
        weights: The `text_fingerprint` of its files, where it is known; ``None``: they are read.

    Raises:
        ModelError: If there is no such model.
        ConfigError: If a setting cannot be carried out here.
        ServerError: If the server cannot be had.
    """
    if is_ready(spec):
        return identify_ready(spec)
    if settings.engine == "server":
        with closing(ServerEngine(spec, settings)) as engine:
            return engine.identify()
    device = pick_device(settings.device, setting="generation.device")
    files = spec.find_files()
    weights = text_fingerprint(files) if weights is None else weights
    identity = settings.identity(device)
    prompt = {"template": spec.prompt_template, "format": spec.prompt_format}
    provenance = {
        "path": spec.path,
        "revision": spec.revision,
        "adapter_of": files.base.name if files.adapter is not None else None,
        "files_sha256": weights,
        "prompt_template": spec.prompt_template,
        "prompt_format": spec.prompt_format,
        **identity,
    }
    return WrittenModel(content_hash({"files": weights, "settings": identity, "prompt": prompt}), provenance)


def write_outputs(
    prompts: Sequence[PromptRecord],
    spec: ModelSpec,
    settings: GenerationSettings,
    path: str | Path,
    *,
    progress: bool = True,
    opener: Callable[[ModelFiles, GenerationSettings], OutputEngine] = open_engine,
    weights: str | None = None,
) -> WrittenModel:
    """Let one model write the outputs that are missing.

    Prompts go in the order of their length, longest first. A prompt that leaves no room for ``max_new_tokens``, or
    that the model's chat template refuses, is left out with its reason.

    Args:
        prompts: The prompts.
        spec: The model.
        settings: How it writes.
        path: The file of outputs, appended to; several models share one.
        progress: Whether a terminal gets a progress bar.
        opener: Loads the model; called only if something is missing.
        weights: See `identify_model`.

    Returns:
        What identifies the outputs; `read_outputs` finds them by it.

    Raises:
        DataError: If another process is writing to the file, or a prompt has no known answer that was asked for.
        ModelError: If the model cannot be found, loaded or used.
        ConfigError: If a setting is out of range or cannot be carried out here.
        ServerError: If a server cannot be had, or refuses the key or the settings; what it has written stays.
        Interrupted: If a signal asked to stop, once the batch or the answers under way are written.
    """
    if settings.engine == "server" and not is_ready(spec):
        with closing(ServerEngine(spec, settings)) as server:
            return _ask_server(prompts, server, path, progress)
    written = identify_model(spec, settings, weights=weights)
    if is_ready(spec):
        ready_outputs(spec, prompts)  # What is wrong with them is to be said now.
        return written
    with JsonLinesFile(path, keep=OUTPUT_PLACE) as file:
        missing = missing_samples(file.rows, written.fingerprint, prompts, settings.num_samples)
        if not missing:
            _say_complete(spec, len(prompts) * settings.num_samples)
            return written
        with closing(opener(spec.find_files(), settings)) as engine:
            _write_missing(prompts, missing, engine, spec, settings, file, written.fingerprint, progress)
    return written


def _ask_server(
    prompts: Sequence[PromptRecord], server: ServerEngine, path: str | Path, progress: bool
) -> WrittenModel:
    written = server.identify()
    with JsonLinesFile(path, keep=OUTPUT_PLACE) as file:
        num_samples = server.settings.num_samples
        missing = missing_samples(file.rows, written.fingerprint, prompts, num_samples)
        if missing:
            ask_missing(prompts, missing, server, file, written.fingerprint, progress=progress)
        else:
            _say_complete(server.spec, len(prompts) * num_samples)
    return written


def _say_complete(spec: ModelSpec, num_outputs: int) -> None:
    logger.info("%s: all %d outputs are there", spec.name, num_outputs)


def read_outputs(
    path: str | Path, prompts: Sequence[PromptRecord], spec: ModelSpec, fingerprint: str, num_samples: int
) -> ModelOutputs:
    """Return the outputs of one model for prompts, of those that a file holds.

    Raises:
        DataError: If the file is damaged.
    """
    if is_ready(spec):
        return ready_outputs(spec, prompts)
    found: dict[tuple[str, int], OutputRecord] = {}
    left_out: dict[str, str] = {}
    for row in read_json_lines(path) if Path(path).is_file() else []:
        if row.get("fingerprint") != fingerprint:
            continue
        if "left_out" in row:
            left_out[row["id"]] = row["left_out"]
            continue
        # The same files under another name are the same outputs.
        record = OutputRecord.from_json({**row, "model": spec.name})
        found.setdefault((record.id, record.sample), record)
    wanted = [(prompt.id, sample) for prompt in prompts for sample in range(num_samples)]
    ids = {prompt.id for prompt in prompts}
    return ModelOutputs(
        [found[key] for key in wanted if key in found],
        {id_: why for id_, why in left_out.items() if id_ in ids},
    )


def _write_missing(
    prompts: Sequence[PromptRecord],
    missing: dict[str, set[int]],
    engine: OutputEngine,
    spec: ModelSpec,
    settings: GenerationSettings,
    file: JsonLinesFile,
    fingerprint: str,
    progress: bool,
) -> None:
    asked: list[tuple[int, PromptRecord, Prompt]] = []
    num_left_out = 0
    for record in prompts:
        if record.id not in missing:
            continue
        prompt, length, why = _prepare(record, engine, spec, settings)
        if why is None:
            asked.append((length, record, prompt))
        else:
            num_left_out += 1
            file.append(left_out_row(fingerprint, record.id, spec.name, why))
    if num_left_out:
        logger.warning(
            "%s cannot be asked %d of %d prompts; the report counts them",
            spec.name,
            num_left_out,
            len(prompts),
        )
    # The longest first, so that memory runs out now or never.
    asked.sort(key=lambda item: (-item[0], item[1].id))
    total = sum(len(missing[record.id]) for _, record, _ in asked)
    # disable=None shows the bar on a terminal only.
    bar = tqdm(
        total=total, desc=f"Generating: {spec.name}", unit="output", disable=None if progress else True
    )
    with bar:
        for start in range(0, len(asked), engine.prompts_at_once):
            batch = asked[start : start + engine.prompts_at_once]
            # A batch that has begun is finished and kept.
            with deferred():
                outputs = engine.write([prompt for _, _, prompt in batch])
                for number, output in enumerate(outputs):
                    record = batch[number // settings.num_samples][1]
                    if output.sample not in missing[record.id]:
                        continue
                    file.append(
                        output_row(
                            fingerprint,
                            record.id,
                            spec.name,
                            output.sample,
                            output.text,
                            num_tokens=len(output.token_ids),
                            finish_reason=output.finish_reason or ("stop" if output.finished else "length"),
                            token_ids=output.token_ids,
                            stop_token_id=output.stop_token_id,
                        )
                    )
                    bar.update(1)
            raise_if_requested()


def _prepare(
    record: PromptRecord, engine: OutputEngine, spec: ModelSpec, settings: GenerationSettings
) -> tuple[Prompt, int, str | None]:
    """Return the model's own prompt, its tokens, and why it cannot be asked, if so."""
    from jinja2.exceptions import TemplateError

    prompt = model_prompt(
        record.messages,
        template=spec.prompt_template,
        prompt_format=spec.prompt_format,
        has_chat_template=bool(getattr(engine.tokenizer, "chat_template", None)),
    )
    try:
        length = len(render_prompt(engine.tokenizer, prompt))
    except TemplateError as error:
        return prompt, 0, f"the chat template refuses it: {error}"
    if engine.max_length is not None and length + settings.max_new_tokens > engine.max_length:
        return (
            prompt,
            length,
            (
                f"{length} tokens leave no room for {settings.max_new_tokens} of the {engine.max_length} there are"
            ),
        )
    return prompt, length, None
