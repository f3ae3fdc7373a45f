"""SIGTERM in each phase of a training: tokenising, the reference pass, training, evaluating, saving."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from torture.processes import Forked
from torture.tiny_run import build, digest, train, warm_up

# Where a phase's work is done, one call a piece of it; rows are read and tokenised by one `map` each.
PHASES = {
    "tokenisation": "datasets.Dataset.map",
    "the reference pass": "dynamic_dpo.trainers.reference_pass.ReferencePass._compute",
    "training": "dynamic_dpo.trainers.whole_step.WholeStep.run",
    "evaluation": "dynamic_dpo.trainers.preference_trainer.evaluate_pairs",
    "saving": "dynamic_dpo.trainers.resumable_trainer.ResumableTrainer._save_checkpoint",
}


@dataclass
class Outcome:
    """Signals sent, and what was wrong after them."""

    signals: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def _signal_at(target: str, call: int) -> Any:
    """Send this process SIGTERM when ``target`` is called for the given time (from 0), before its work."""
    module, _, name = target.rpartition(".")
    owner: Any
    try:
        owner = __import__(module, fromlist=["x"])
    except ImportError:
        parent, _, cls = module.rpartition(".")
        owner = getattr(__import__(parent, fromlist=["x"]), cls)
    original, calls = getattr(owner, name), iter(range(10**9))

    def watched(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, watched):
        yield


def _texts() -> Any:
    from datasets import Dataset

    draw = random.Random(0)

    def text() -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 5)))

    return Dataset.from_list(
        [{"prompt": text(), "chosen": f" {text()}", "rejected": f" {text()}"} for _ in range(20)]
    )


def _tokenise_and_train(folder: Path) -> None:
    from dynamic_dpo.trainers.arguments import Truncation
    from dynamic_dpo.trainers.referenced_data import prepare_pairs
    from tiny import word_tokenizer

    with mock.patch("torture.tiny_run.random_pairs") as pairs:
        data = prepare_pairs(_texts(), word_tokenizer(), Truncation())
        pairs.side_effect = lambda count, **options: data.select(range(min(count, len(data))))
        trainer = build(folder)
        trainer.train(resume_from_checkpoint=trainer.find_checkpoint())
    (folder / "end.json").write_text(json.dumps(digest(trainer)))


def stop_in(phase: str, count: int, seed: int = 0) -> Outcome:
    """Send SIGTERM ``count`` times in a phase, each time to a run of its own, and let the run go on to its end."""
    warm_up()
    draw, outcome = random.Random(seed), Outcome()
    run: Callable[[Path], None] = _tokenise_and_train if phase == "tokenisation" else train
    # How often a whole run does the phase's piece of work.
    pieces = {"tokenisation": 2, "the reference pass": 2, "training": 10, "evaluation": 3, "saving": 5}[phase]
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "run-9999"
        whole.mkdir()
        assert Forked(partial(run, whole), whole / "output").wait() == 0, (whole / "output").read_text()[
            -2000:
        ]
        expected = json.loads((whole / "end.json").read_text())
        for number in range(count):
            folder = Path(scratch) / f"run-{number:04d}"
            folder.mkdir()
            output = folder / "output"
            call = draw.randrange(pieces)

            def struck(folder: Path = folder, call: int = call) -> None:
                with _signal_at(PHASES[phase], call):
                    run(folder)

            code = Forked(struck, output).wait()
            outcome.signals += 1
            before = sorted(path.name for path in (folder / "run").glob("checkpoint-*"))
            if code != 143:
                outcome.wrong.append(f"{phase}, piece {call}: exit code {code}: {output.read_text()[-500:]}")
                continue
            if phase in ("training", "evaluation", "saving") and not before:
                outcome.wrong.append(f"{phase}, piece {call}: no checkpoint was saved")
            code = Forked(partial(run, folder), output).wait()
            found = json.loads((folder / "end.json").read_text()) if code == 0 else {}
            if different := [part for part in expected if found.get(part) != expected[part]]:
                outcome.wrong.append(f"{phase}, piece {call}: exit code {code}, another end: {different}")
    return outcome
