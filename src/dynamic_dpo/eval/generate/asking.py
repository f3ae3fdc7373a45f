"""Asking a server for the outputs that are missing: several at a time, each on the disk when it is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tqdm.auto import tqdm

from dynamic_dpo.errors import ServerError
from dynamic_dpo.eval.generate.rows import left_out_row, output_row
from dynamic_dpo.eval.generate.server import Asked, ServerEngine, UnanswerableError
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.utils.json_lines import JsonLinesFile
from dynamic_dpo.utils.parallel.workers import Workers

logger = logging.getLogger("dynamic_dpo")


class _Question(NamedTuple):
    id: str
    asked: Asked
    sample: int


def ask_missing(
    prompts: Sequence[PromptRecord],
    missing: Mapping[str, set[int]],
    engine: ServerEngine,
    file: JsonLinesFile,
    fingerprint: str,
    *,
    progress: bool = True,
) -> None:
    """Ask for every missing output; answers under way when something fails or a signal comes are still kept.

    Args:
        prompts: The prompts.
        missing: Which samples of which prompts, by prompt id.
        engine: The server.
        file: Where the outputs go, in the order in which they come.
        fingerprint: Of model and settings.
        progress: Whether a terminal gets a progress bar.

    Raises:
        ServerError: If the server cannot be had, or refuses the key or the settings.
        Interrupted: If a signal asked to stop.
        OSError: If the disk refuses an output.
    """
    name = engine.spec.name
    left_out: set[str] = set()
    lock = threading.Lock()

    def leave_out(id_: str, why: str) -> None:
        with lock:
            if id_ in left_out:
                return
            left_out.add(id_)
        file.append(left_out_row(fingerprint, id_, name, why))

    questions = []
    for record in prompts:
        if record.id not in missing:
            continue
        try:
            asked = engine.prepare(record)
        except UnanswerableError as error:
            leave_out(record.id, str(error))
            continue
        questions += [_Question(record.id, asked, sample) for sample in sorted(missing[record.id])]

    def answer(question: _Question) -> None:
        if question.id in left_out:
            return
        try:
            output = engine.write(question.asked, question.sample)
        except UnanswerableError as error:
            leave_out(question.id, str(error))
            return
        except ServerError as error:
            raise ServerError(f"{error} (asked about prompt {question.id})") from None
        file.append(
            output_row(
                fingerprint,
                question.id,
                name,
                question.sample,
                output.text,
                num_tokens=output.num_tokens,
                finish_reason=output.finish_reason,
                token_ids=output.token_ids,
                stop_token_id=output.stop_token_id,
            )
        )
        with lock:
            bar.update(1)

    # disable=None shows the bar on a terminal only.
    with tqdm(
        total=len(questions), desc=f"Generating: {name}", unit="output", disable=None if progress else True
    ) as bar:
        Workers(answer, on_stop=engine.stop).run(questions, engine.settings.server.concurrency)
    if left_out:
        logger.warning(
            "%s cannot be asked %d of %d prompts; the report counts them", name, len(left_out), len(prompts)
        )
