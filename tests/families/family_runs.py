"""Tries families, each in a process of its own: what one of them crashes or hangs, the others do not see."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path

from families.family_check import Outcome, check_family


def try_families(names: Iterable[str], *, workers: int, seconds: float) -> dict[str, Outcome]:
    """Try every family.

    Args:
        names: The families.
        workers: Processes at a time.
        seconds: Time that one may take.

    Returns:
        Outcomes by name, in the order given.
    """
    names = list(names)
    with tempfile.TemporaryDirectory() as folder:
        outcomes, running, waiting = {}, {}, [*names]
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                running[_start(name, Path(folder, name))] = (name, time.monotonic() + seconds)
            time.sleep(0.02)
            for process, (name, until) in list(running.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and time.monotonic() > until:
                    os.kill(process, signal.SIGKILL)
                    ended, status = os.waitpid(process, 0)
                if ended:
                    del running[process]
                    outcomes[name] = _outcome(Path(folder, name), status, seconds)
    return {name: outcomes[name] for name in names}


def _start(name: str, folder: Path) -> int:
    folder.mkdir()
    if process := os.fork():
        return process
    # From here on in the child, which must not return into its parent's code.
    with (
        (folder / "output").open("w") as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            outcome = check_family(name, folder)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcome = Outcome(
                fault=f"{type(error).__name__}: {first} ({Path(place.filename).name}:{place.lineno})"
            )
        (folder / "outcome.json").write_text(json.dumps(outcome._asdict()))
    os._exit(0)


def _outcome(folder: Path, status: int, seconds: float) -> Outcome:
    file = folder / "outcome.json"
    if status == 0 and file.is_file():
        return Outcome(**json.loads(file.read_text()))
    ended = (
        f"no answer within {seconds:g} s"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        else f"its process ended with status {status}"
    )
    return Outcome(fault=ended)


if __name__ == "__main__":
    for name, outcome in try_families(sys.argv[1:], workers=2, seconds=60).items():
        print(name, *outcome, sep=" | ")
