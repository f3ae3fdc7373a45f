"""The rounds of a loop: each stage run once, noted in its round's manifest, and gone on from by the same command."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from dynamic_dpo.errors import ConfigError, StageError
from dynamic_dpo.loops.figures import RoundFigures, beta_after, figures_of
from dynamic_dpo.loops.manifest import Manifest
from dynamic_dpo.loops.mixing import num_pairs, pairs_of_round, sha256_of_pairs
from dynamic_dpo.loops.page import loop_page
from dynamic_dpo.loops.plan import LoopPlan, Stage
from dynamic_dpo.loops.stages import evaluate_stage, rollout_stage, train_stage
from dynamic_dpo.runs.files import CHECKPOINT_PREFIX
from dynamic_dpo.utils.files import replacing, write_json, write_text
from dynamic_dpo.utils.json_lines import json_line, read_json_lines

logger = logging.getLogger("dynamic_dpo")

BUDGET_STOPPED = 3
"""Exit code of a stage whose judge has reached a limit of its budget; the loop goes on with what there is."""


class LoopResult(NamedTuple):
    """What a loop has come to.

    Attributes:
        rounds: The figures of every round.
        model: The folder of the model that the last round has trained.
        stopped: Why it ended before the last round, in words; ``None`` if it did not.
        page: The page.
    """

    rounds: list[RoundFigures]
    model: Path
    stopped: str | None
    page: Path


def run_loop(plan: LoopPlan) -> LoopResult:
    """Run the rounds of a loop that are missing, and write ``summary.json`` and ``report.html`` after each.

    Raises:
        ConfigError: If a stage that is done was made with other settings, or another process works in the folder.
        DataError: If a file that a stage has left is not there, or another one.
        StageError: If a stage fails.
        Interrupted: If a signal asked to stop; the same command goes on.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / ".lock", timeout=0):
            return _run_rounds(plan)
    except Timeout:
        raise ConfigError(
            f"another process works in {plan.folder}: wait for it, or choose another iterate.output_dir"
        ) from None


def _run_rounds(plan: LoopPlan) -> LoopResult:
    _write_excluded(plan)
    rounds: list[RoundFigures] = []
    stopped: str | None = None
    for number in range(1, plan.settings.rounds + 1):
        rounds.append(_run_round(plan, number))
        last = rounds[-1]
        logger.info("%s", _sentence(last))
        stopped = reason_to_stop(plan, last) if number < plan.settings.rounds else None
        page = _write_results(plan, rounds, stopped)
        if stopped:
            logger.info("stopped after round %d: %s", number, stopped)
            break
    model = plan.folder_of(rounds[-1].round) / "train"
    logger.info("the model: %s; the page: %s", model, page)
    return LoopResult(rounds, model, stopped, page)


def _run_round(plan: LoopPlan, number: int) -> RoundFigures:
    manifest = Manifest(plan.folder_of(number), plan.settled)
    before = {"model": plan.model_before(number)}
    if number > 1:
        before["model_sha256"] = Manifest(plan.folder_of(number - 1)).digest_of("train")

    _do(plan, manifest, rollout_stage(plan, number), before)
    pairs = pairs_of_round(plan, number)
    if not num_pairs(pairs):
        raise StageError(
            f"round {number} made no pairs: {plan.folder_of(number) / 'rollout' / 'report.html'} says what was left "
            "out and why"
        )
    beta = None if number == 1 else beta_after(plan, number - 1)
    training = train_stage(plan, number, pairs, beta)
    rows = {"rollout_sha256": manifest.digest_of("rollout"), "pairs_sha256": sha256_of_pairs(pairs)}
    _do(plan, manifest, training, {**before, **rows}, prepare=_clear_unfinished)
    _do(
        plan,
        manifest,
        evaluate_stage(plan, number),
        {**before, "trained_sha256": manifest.digest_of("train")},
        prepare=lambda stage: _hand_on_outputs(plan, stage),
    )
    return figures_of(
        plan,
        number,
        trained_pairs=num_pairs(pairs),
        beta_first=training.settings["beta_update"]["beta_0"],
        seconds={name: done.seconds for name, done in manifest.stages.items()},
        stopped=tuple(name for name, done in manifest.stages.items() if done.stopped),
    )


def _do(
    plan: LoopPlan,
    manifest: Manifest,
    stage: Stage,
    inputs: dict[str, str],
    *,
    prepare: Callable[[Stage], None] = lambda stage: None,
) -> None:
    if manifest.done(stage, inputs) is not None:
        logger.info("%s: done before", stage.title)
        return
    logger.info("%s: begins", stage.title)
    prepare(stage)
    start = time.perf_counter()
    code = plan.run(stage)
    seconds = time.perf_counter() - start
    if code not in (0, BUDGET_STOPPED):
        raise StageError(_failure(stage, code))
    manifest.put(stage, inputs, seconds=seconds, stopped=code == BUDGET_STOPPED)
    logger.info("%s: %.1f s", stage.title, seconds)


def _failure(stage: Stage, code: int) -> str:
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        how += " (the system does that to the largest process where memory runs out)" if code == -9 else ""
    else:
        how = f"ended with exit code {code}, and its message stands above"
    return f"{stage.title} {how}. Mend that and run the same command again: it goes on from there"


def _clear_unfinished(stage: Stage) -> None:
    """Remove what a training has left that was stopped without a checkpoint, or while it was saving its model."""
    if stage.folder.is_dir() and not any(stage.folder.glob(f"{CHECKPOINT_PREFIX}*")):
        shutil.rmtree(stage.folder)


def _hand_on_outputs(plan: LoopPlan, stage: Stage) -> None:
    """Give an evaluation the outputs that its first model wrote in the evaluation of the round before."""
    earlier = plan.folder_of(stage.round - 1) / "evaluation" / "generations.jsonl"
    path = stage.folder / earlier.name
    if stage.round == 1 or path.exists():
        return
    name = plan.name_of_model(stage.round - 1)
    with replacing(path) as file:
        file.writelines(json_line(row) for row in read_json_lines(earlier) if row.get("model") == name)


def _write_excluded(plan: LoopPlan) -> None:
    # Once: a set on the hub may grow, and the rounds of one loop must not differ in what they leave out.
    if not plan.excluded_path.is_file():
        _write_rows(plan.excluded_path, ({"prompt": messages} for messages in plan.excluded()))


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def reason_to_stop(plan: LoopPlan, figures: RoundFigures) -> str | None:
    """Return why no further round follows, in words, or ``None``."""
    low, high = figures.win_rate_interval
    if plan.settings.stop_when_even and not low > 0.5:
        return (
            f"its win rate against the model before it, {figures.win_rate:.1%} ({low:.1%} to {high:.1%}), is not "
            "clearly above 50 %"
        )
    budget = plan.settings.kl_budget
    if budget is not None and figures.kl is not None and figures.kl >= budget:
        return f"its model is {figures.kl:.2f} nats per answer away from the first one, and the budget is {budget:g}"
    return None


def _sentence(figures: RoundFigures) -> str:
    low, high = figures.win_rate_interval
    kl = "" if figures.kl is None else f", {figures.kl:.2f} nats from the first model"
    return (
        f"round {figures.round}: {figures.trained_pairs} pairs, win rate {figures.win_rate:.1%} "
        f"({low:.1%} to {high:.1%}) against the model before it{kl}"
    )


def _write_results(plan: LoopPlan, rounds: list[RoundFigures], stopped: str | None) -> Path:
    numbers = {"format_version": 1, "rounds": [figures.to_json() for figures in rounds], "stopped": stopped}
    write_json(plan.folder / "summary.json", numbers)
    return write_text(plan.folder / "report.html", loop_page(plan, rounds, stopped))
