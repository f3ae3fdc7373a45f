"""The trainings of a sweep: each run once, noted when it is whole, and gone on with by the same command."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from filelock import FileLock, Timeout

from dynamic_dpo.errors import ConfigError, DataError, StageError
from dynamic_dpo.runs.files import CHECKPOINT_PREFIX, CONTROLLER, MARGINS
from dynamic_dpo.sweeps.figures import RunFigures, figures_of, is_done, ranked, with_evaluation
from dynamic_dpo.sweeps.page import sweep_page
from dynamic_dpo.sweeps.plan import SweepPlan, Training
from dynamic_dpo.utils.differences import differences
from dynamic_dpo.utils.durations import duration
from dynamic_dpo.utils.files import write_json, write_text
from dynamic_dpo.utils.parallel.children import Child, run_child, run_children
from dynamic_dpo.utils.signals import stop_requested

logger = logging.getLogger("dynamic_dpo")

SUMMARY: Final = "sweep.json"
PAGE: Final = "report.html"
_VERSION: Final = 1
_BUDGET_STOPPED: Final = 3
"""Exit code of an evaluation that a limit of its judge's budget has ended; its figures are of what there is."""


class SweepResult(NamedTuple):
    """What a sweep has come to.

    Attributes:
        runs: The figures of the trainings that are done, the best first.
        failed: Name to what happened, for the trainings that failed.
        page: The page.
    """

    runs: list[RunFigures]
    failed: dict[str, str]
    page: Path


def run_sweep(plan: SweepPlan) -> SweepResult:
    """Run the trainings of a sweep that are missing, then its evaluation, and write ``sweep.json`` and the page.

    A training that fails leaves the others as they are; the same command tries it again.

    Raises:
        ConfigError: If a training that was begun has other settings, or another process works in the folder.
        DataError: If a training that is done has left no evaluation.
        StageError: If no training is left, or the evaluation fails.
        Interrupted: If a signal asked to stop; the same command goes on.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / ".lock", timeout=0):
            return _run(plan)
    except Timeout:
        raise ConfigError(
            f"another process works in {plan.folder}: wait for it, or choose another --out"
        ) from None


def _run(plan: SweepPlan) -> SweepResult:
    missing = [training for training in plan.trainings if not _is_done(plan, training)]
    logger.info(
        "%d trainings, %d of them done before, %d at once",
        len(plan.trainings),
        len(plan.trainings) - len(missing),
        min(len(plan.places), len(missing)),
    )
    failed = _Trainings(plan, missing).run()
    runs = [
        figures_of(training.name, training.overrides, plan.folder_of(training))
        for training in plan.trainings
        if training.name not in failed
    ]
    if not runs:
        raise StageError(f"all {len(failed)} trainings failed: {'; '.join(failed.values())}")
    if plan.evaluation is not None:
        runs = _evaluated(plan, runs)
    runs = ranked(runs, plan.criterion)
    write_json(
        plan.folder / SUMMARY,
        {
            "format_version": _VERSION,
            "criterion": plan.criterion,
            "runs": [figures.to_json() for figures in runs],
            "failed": failed,
        },
    )
    page = write_text(plan.folder / PAGE, sweep_page(plan, runs, failed))
    return SweepResult(runs, failed, page)


class _Trainings:
    """Runs trainings, and notes and says what comes of each."""

    def __init__(self, plan: SweepPlan, missing: list[Training]) -> None:
        self.plan = plan
        self.missing = {training.name: training for training in missing}
        self.failed: dict[str, str] = {}
        self.started: dict[str, float] = {}
        self.seconds: list[float] = []

    def run(self) -> dict[str, str]:
        """Return name to what happened, for the trainings that failed."""
        if not self.missing:
            return {}
        children = [self._child(training) for training in self.missing.values()]
        first = self.plan.folder_of(next(iter(self.missing.values())))

        def scores_the_reference() -> bool:
            # The others find its log-probabilities on disk, instead of each computing them at the same time.
            return not any(path.name in (MARGINS, CONTROLLER) for path in first.rglob("*.jsonl"))

        run_children(
            children,
            places=self.plan.places,
            alone=scores_the_reference,
            begun=self._begun,
            ended=self._ended,
        )
        return self.failed

    def _child(self, training: Training) -> Child:
        place = self.plan.folder_of(training)
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(place)
        words = self.plan.prepare("train-dpo", place.with_name(f"{place.name}.yaml"), training.settings)
        # Several progress bars at once are no progress to anyone.
        output = place.with_name(f"{place.name}.log") if len(self.plan.places) > 1 else None
        return Child(training.name, words, output)

    def _begun(self, child: Child) -> None:
        self.started[child.name] = time.perf_counter()
        where = "" if child.output is None else f" (what it prints: {child.output})"
        logger.info("%s: begins%s", child.name, where)

    def _ended(self, child: Child, code: int) -> None:
        seconds = time.perf_counter() - self.started[child.name]
        training = self.missing[child.name]
        if code:
            if stop_requested() is None:
                self.failed[child.name] = _failure(child, code)
                logger.error("%s", self.failed[child.name])
            return
        self.seconds.append(seconds)
        note = {"version": _VERSION, "settings": dict(training.settings), "seconds": seconds}
        write_json(_note_of(self.plan, training), note)
        figures = figures_of(training.name, training.overrides, self.plan.folder_of(training))
        left = len(self.missing) - len(self.seconds) - len(self.failed)
        logger.info(
            "%s: held-out loss %.4f, accuracy %.1f %%, %.0f s; %d left, about %s",
            child.name,
            figures.loss,
            100 * figures.accuracy,
            seconds,
            left,
            duration(left * sum(self.seconds) / len(self.seconds) / len(self.plan.places)),
        )


def _note_of(plan: SweepPlan, training: Training) -> Path:
    folder = plan.folder_of(training)
    return folder.with_name(f"{folder.name}.json")


def _is_done(plan: SweepPlan, training: Training) -> bool:
    """Return whether a training was noted as whole.

    Raises:
        ConfigError: If it was made with other settings.
        DataError: If the note cannot be read, or what it speaks of is gone.
    """
    path = _note_of(plan, training)
    if not path.is_file():
        return False
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note["version"] != _VERSION:
            raise ValueError("another version")
        settings: dict[str, Any] = note["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no note of this version: remove it, and its training is made again"
        ) from error
    before, now = (json.loads(json.dumps(plan.settled(one))) for one in (settings, dict(training.settings)))
    changes = list(differences(before, now))
    if changes:
        raise ConfigError(
            f"{training.name} in {plan.folder} was made with other settings: {'; '.join(changes[:5])}. Take the "
            "change back, or choose another --out"
        )
    if not is_done(plan.folder_of(training)):
        raise DataError(f"{plan.folder_of(training)} is not whole any more: put it back, or remove {path}")
    return True


def _clear_unfinished(folder: Path) -> None:
    """Remove what a training has left that was stopped without a checkpoint, or while it was saving its model."""
    if folder.is_dir() and not any(folder.glob(f"{CHECKPOINT_PREFIX}*")):
        shutil.rmtree(folder)


def _failure(child: Child, code: int) -> str:
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        how += " (the system does that to the largest process where memory runs out)" if code == -9 else ""
    else:
        said = "above" if child.output is None else f"in {child.output}"
        how = f"ended with exit code {code}, and its message stands {said}"
    return f"{child.name} {how}"


def _evaluated(plan: SweepPlan, runs: list[RunFigures]) -> list[RunFigures]:
    settings: dict[str, Any] = dict(plan.evaluation or {})
    settings["models"] = {
        **settings["models"],
        **{
            training.name: str(plan.folder_of(training))
            for training in plan.trainings
            if training.name in {figures.name for figures in runs}
        },
    }
    logger.info("evaluation: begins")
    code = run_child(plan.prepare("evaluate", plan.folder / "evaluation.yaml", settings))
    if code not in (0, _BUDGET_STOPPED):
        how = _failure(Child("evaluation", ()), code)
        raise StageError(f"{how}. Mend that and run the same command again: it goes on from there")
    summary = json.loads((Path(settings["output"]["dir"]) / "summary.json").read_text(encoding="utf-8"))
    return [with_evaluation(figures, summary) for figures in runs]
