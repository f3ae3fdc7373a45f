"""The stages of a rollout: prepare, sample, label, pair; alone, together, and again.

Each does what is missing in the rollout's folder. Answers, scores and verdicts are in files that only grow; pairs are
made anew from them every time, which costs nothing, and replaced whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.generate.stage import write_outputs
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.rollouts.comparisons import Labelled
from dynamic_dpo.rollouts.filters import Dropped
from dynamic_dpo.rollouts.folder import RolloutFolder
from dynamic_dpo.rollouts.labels import read_labels, usable_of, write_labels
from dynamic_dpo.rollouts.page import rollout_page
from dynamic_dpo.rollouts.pairs import pair_row, pairs_of
from dynamic_dpo.rollouts.plan import RolloutPlan
from dynamic_dpo.rollouts.prompts import draw_prompts
from dynamic_dpo.rollouts.samples import Samples
from dynamic_dpo.rollouts.summary import RolloutSummary, judge_figures
from dynamic_dpo.utils.files import replacing, write_json, write_text
from dynamic_dpo.utils.json_lines import json_line

logger = logging.getLogger("dynamic_dpo")


class RolloutResult(NamedTuple):
    """What a rollout has come to.

    Attributes:
        pairs: The file of pairs, which training takes; ``None`` where they were not made.
        summary: Every number of it; empty where no pairs were made.
        stopped: Which limit of the judge's budget ended the labelling, in words; ``None`` if none did.
        seconds: How long each stage took.
    """

    pairs: Path | None
    summary: dict[str, Any]
    stopped: str | None
    seconds: dict[str, float]


def prepare(folder: RolloutFolder) -> None:
    """Draw the prompts and write them to ``prompts.jsonl``, unless those of these settings are there.

    Raises:
        DataError: If the prompts cannot be had.
    """
    if not folder.has_prompts():
        folder.put_prompts(draw_prompts(folder.plan))


def sample(folder: RolloutFolder) -> None:
    """Let every model write the answers that are missing.

    Raises:
        ConfigError: If the prompts were not drawn, or by other settings.
        ModelError: If a model cannot be used.
    """
    plan, prompts = folder.plan, folder.prompts()
    for spec in plan.models:
        write_outputs(prompts, spec, plan.generation, folder.outputs_path, progress=plan.progress)


def label(folder: RolloutFolder) -> str | None:
    """Get every label that is missing; see `write_labels`."""
    return write_labels(folder)


def pair(folder: RolloutFolder) -> RolloutSummary:
    """Make the pairs and write ``pairs.jsonl``, ``dropped.jsonl``, ``summary.json`` and ``report.html``.

    Pairs stand in the order of the draw, which hangs on seed and content alone.

    Returns:
        What the rollout has come to.

    Raises:
        ConfigError: If a stage before this has not run, or with other settings.
        DataError: If answers or labels are missing, or a file is damaged.
    """
    plan, prompts = folder.plan, folder.prompts()
    samples = folder.samples(prompts)
    _require_all(folder, samples, prompts)
    labels = read_labels(folder, prompts, samples)
    summary = RolloutSummary(plan.rule, labels.judge, stopped=folder.labels_note().stopped)
    if labels.judgements:
        summary.judging = judge_figures(labels.judgements, labels.judge or "")
    with ExitStack() as stack:
        pairs_file = stack.enter_context(replacing(folder.pairs_path))
        dropped_file = stack.enter_context(replacing(folder.dropped_path))
        excluded = [Dropped(id_, "evaluation_prompt") for id_ in folder.prompts_note()["excluded"]]
        summary.dropped.update(item.reason for item in excluded)
        dropped_file.writelines(json_line(item._asdict()) for item in excluded)
        for prompt in prompts:
            usable = usable_of(folder, samples, prompt)
            labelled = labels.of(prompt, usable.answers) if usable.answers else Labelled([], [])
            made = pairs_of(prompt.id, labelled.answers, plan)
            dropped = [
                *_left_out(samples, prompt),
                *usable.dropped,
                *labelled.dropped,
                *made.dropped,
            ]
            num_answers = len(usable.answers) + len(usable.dropped)
            summary.count_prompt(prompt, num_answers, labelled.answers, made.pairs, dropped, plan)
            pairs_file.writelines(
                json_line(pair_row(prompt, found, plan, judge=labels.judge)) for found in made.pairs
            )
            dropped_file.writelines(json_line(item._asdict()) for item in dropped)
    write_json(folder.summary_path, summary.numbers())
    write_text(folder.page_path, rollout_page(folder, summary, labels.fingerprints))
    logger.info(
        "%d pairs from %d of %d prompts in %s",
        summary.num_pairs,
        summary.num_prompts_with_pairs,
        summary.num_prompts,
        folder.pairs_path,
    )
    return summary


STAGES: Final[dict[str, Callable[[RolloutFolder], Any]]] = {
    "prepare": prepare,
    "sample": sample,
    "label": label,
    "pair": pair,
}
"""The stages in their order."""


def run_rollout(plan: RolloutPlan) -> RolloutResult:
    """Run a whole rollout; see `run_stages`."""
    return run_stages(RolloutFolder(plan))


def run_stages(folder: RolloutFolder, stages: Sequence[str] = tuple(STAGES)) -> RolloutResult:
    """Run stages of a rollout, each doing what is missing.

    Args:
        folder: The rollout's folder.
        stages: Names in `STAGES`, in their order.

    Returns:
        What came of it.

    Raises:
        ConfigError: If settings cannot be carried out, or a stage runs before what it needs.
        DataError: If prompts or files cannot be used.
        ModelError: If a model cannot be used.
        JudgeError: If scorer or judge fail; what is there stays.
        Interrupted: If a signal asked to stop; what was under way is kept.
    """
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for name in stages:
        start = time.perf_counter()
        results[name] = STAGES[name](folder)
        seconds[name] = time.perf_counter() - start
        logger.info("%s: %.1f s", name, seconds[name])
    made: RolloutSummary | None = results.get("pair")
    return RolloutResult(
        pairs=None if made is None else folder.pairs_path,
        summary={} if made is None else made.numbers(),
        stopped=results.get("label") if made is None else made.stopped,
        seconds=seconds,
    )


def _left_out(samples: Samples, prompt: PromptRecord) -> list[Dropped]:
    found = ((model, samples.left_out.get((model, prompt.id))) for model in samples.models)
    return [Dropped(prompt.id, "left_out", (), f"{model}: {why}") for model, why in found if why is not None]


def _require_all(folder: RolloutFolder, samples: Samples, prompts: Sequence[PromptRecord]) -> None:
    lacking = [(prompt.id, model) for prompt in prompts for model in samples.missing(prompt)]
    if lacking:
        raise DataError(
            f"answers to {len(lacking)} of {len(prompts)} prompts are missing from {folder.outputs_path} (the first: "
            f"{lacking[0][1]} on prompt {lacking[0][0]}): run the stage sample again"
        )
