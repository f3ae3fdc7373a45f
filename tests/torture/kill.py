"""Kills the tiny run at random moments and resumes it, and compares every end with the uninterrupted one."""

from __future__ import annotations

import json
import signal
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torture.processes import Forked, moments
from torture.tiny_run import CONTROLLERS, train, warm_up


@dataclass
class Outcome:
    """What came of a number of kills."""

    kills: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)


def uninterrupted(folder: Path, controller: tuple[str, str]) -> tuple[dict[str, str], float]:
    """Return the digest of the run that nobody disturbs, and the seconds it takes."""
    warm_up()
    folder.mkdir(parents=True)
    start = time.monotonic()
    child = Forked(partial(train, folder, controller=controller), folder / "output")
    code = child.wait()
    assert code == 0, (folder / "output").read_text()[-3000:]
    return json.loads((folder / "end.json").read_text()), time.monotonic() - start


def kill_and_resume(cycles: int, *, number: int = signal.SIGKILL, seed: int = 0, per_run: int = 5) -> Outcome:
    """Interrupt runs so many times in all, up to ``per_run`` times each, and let each come to its end.

    The runs take turns with the controller's modes and scopes.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as scratch:
        # Only those whose turn will come: few kills must stay a short test.
        controllers = CONTROLLERS[: max(1, min(len(CONTROLLERS), cycles // per_run))]
        ends = [
            uninterrupted(Path(scratch) / f"run-{9999 - number}", controller)
            for number, controller in enumerate(controllers)
        ]
        when = iter(moments(100 * cycles, min(seconds for _, seconds in ends), seed))
        while outcome.kills < cycles:
            folder = Path(scratch) / f"run-{outcome.runs:04d}"
            folder.mkdir()
            turn = outcome.runs % len(controllers)
            run = partial(train, folder, controller=controllers[turn])
            expected = ends[turn][0]
            for _ in range(per_run):
                child = Forked(run, folder / "output")
                code = child.signal_after(next(when), number)
                if code == 0:
                    break
                assert code in (-number, 128 + number), (folder / "output").read_text()[-3000:]
                outcome.kills += 1
            if not (folder / "end.json").exists():
                code = Forked(run, folder / "output").wait()
                assert code == 0, (folder / "output").read_text()[-3000:]
            found = json.loads((folder / "end.json").read_text())
            outcome.runs += 1
            name = "-".join(controllers[turn])
            outcome.different += [
                f"run {outcome.runs}, {name}: {part}" for part in expected if found[part] != expected[part]
            ]
    return outcome
