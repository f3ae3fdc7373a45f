"""Damage to a real checkpoint: the resume passes it over for an older one, and never reads it in silence."""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from dynamic_dpo.trainers.checkpoints.folders import newest_complete
from torture.corruption import KINDS, corrupt
from torture.store import Damage
from torture.tiny_run import train


def damage_checkpoints(count: int, seed: int = 0) -> Damage:
    """Damage the newest of two real checkpoints so many times and ask which one a resume would take."""
    draw, outcome = random.Random(seed), Damage()
    logger = logging.getLogger("dynamic_dpo")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            train(Path(scratch) / "whole", max_steps=4, save_steps=2)
        run = Path(scratch) / "whole" / "run"
        assert newest_complete(run) == run / "checkpoint-4"
        copy = Path(scratch) / "copy"
        shutil.copytree(run / "checkpoint-4", copy)
        for number in range(count):
            corrupt(run / "checkpoint-4", KINDS[number % len(KINDS)], draw)
            outcome.made += 1
            outcome.believed += newest_complete(run) != run / "checkpoint-2"
            shutil.rmtree(run / "checkpoint-4")
            shutil.copytree(copy, run / "checkpoint-4")
    logger.setLevel(before)
    return outcome
