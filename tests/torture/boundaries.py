"""Strikes a short run at every place where it touches the disk, then resumes it and compares its end."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dynamic_dpo.runs.keep_best import KeepBest
from dynamic_dpo.trainers.checkpoints.file_list import fault_of
from dynamic_dpo.trainers.checkpoints.folders import checkpoint_folders, clean
from torture.faults import KILLED, Faults, Kind, struck_by, watched
from torture.processes import REFUSED, Forked
from torture.tiny_run import train, warm_up

# Three steps, a checkpoint each, one kept: every kind of write, rename and removal happens at least twice.
SHORT = {"max_steps": 3, "save_steps": 1, "save_total_limit": 1, "eval_strategy": "no", "logging_steps": 2}

# The best weights are written several times, and checkpoints between them; patience ends the run early.
KEEPING = {
    "max_steps": 9,
    "save_steps": 2,
    "save_total_limit": 1,
    "eval_steps": 1,
    "logging_steps": 2,
    "learning_rate": 0.1,
    "keep_best": KeepBest(patience=3),
}


@dataclass
class Outcome:
    """What came of striking at a number of places."""

    places: int = 0
    struck: int = 0
    wrong: list[str] = field(default_factory=list)


def strike(
    kind: Kind, *, sample: int | None = None, seed: int = 0, settings: Mapping[str, Any] = SHORT
) -> Outcome:
    """Strike at every place, or at ``sample`` random ones; say where anything but the same end came out."""
    warm_up()
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "run-9999"
        whole.mkdir()
        with struck_by(Faults(whole)) as counted:
            train(whole, **settings)
        expected = json.loads((whole / "end.json").read_text())
        outcome = Outcome(places=len(counted.places))
        chosen = list(range(len(counted.places)))
        if sample is not None:
            chosen = sorted(random.Random(seed).sample(chosen, min(sample, len(chosen))))
        for place in chosen:
            folder = Path(scratch) / f"run-{place:04d}"
            folder.mkdir()
            fault = _one(folder, kind, place, expected, settings)
            outcome.struck += 1
            if fault:
                outcome.wrong.append(f"{kind} at place {place} ({counted.places[place]}): {fault}")
    return outcome


def _one(
    folder: Path, kind: Kind, place: int, expected: dict[str, str], settings: Mapping[str, Any]
) -> str | None:
    output = folder / "output"
    run = partial(train, folder, **settings)
    code = Forked(watched(run, Faults(folder, kind, place)), output).wait()
    if code not in ((0, REFUSED) if kind == "full" else (0, KILLED)):
        return f"exit code {code}: {output.read_text()[-800:]}"
    if kind == "full" and code == REFUSED and "No space left" not in output.read_text():
        return f"the error does not say why: {output.read_text()[-300:]}"
    clean(folder / "run")
    folders = checkpoint_folders(folder / "run")
    if kind != "cut" and (
        faults := [f"{path.name}: {fault}" for path in folders if (fault := fault_of(path))]
    ):
        return f"a checkpoint that is not whole: {faults}"
    if code == 0 and (folder / "end.json").exists():
        (folder / "end.json").unlink()
    code = Forked(run, output).wait()
    if code != 0:
        return f"it does not go on, exit code {code}: {output.read_text()[-800:]}"
    found = json.loads((folder / "end.json").read_text())
    different = [part for part in expected if found[part] != expected[part]]
    return f"another end: {different}" if different else None
