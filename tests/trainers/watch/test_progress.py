"""The progress line: one line on a terminal of any width, plain lines elsewhere, no dictionaries anywhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from transformers import PrinterCallback, ProgressCallback

from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.watch.progress import ProgressLine, progress_line
from dynamic_dpo.utils.terminal import columns_of, draws_lines, takes_colours
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PARTS = {
    0: "loss 0.612",
    2: "held-out 0.655",
    3: "accuracy 0.71",
    4: "beta 0.1",
    5: "margin +0.42",
    1: "9 s left",
}


def train(folder: Path, stream: TextIO, **arguments: Any) -> PreferenceTrainer:
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(
            folder,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=2,
            **{"disable_tqdm": False, **arguments},
        ),
        train_dataset=random_pairs(16),
        eval_dataset=random_pairs(4, seed=5),
        processing_class=word_tokenizer(),
        method=DPO(),
    )
    (line,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, ProgressLine)]
    line._given_stream = stream
    trainer.train()
    return trainer


@contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, list[str]]]:
    """A terminal of so many columns, and what was written to it once the block has ended."""
    there, here = pty.openpty()
    fcntl.ioctl(here, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    said: list[str] = []
    with os.fdopen(here, "w") as stream:
        yield stream, said
        stream.flush()
        os.set_blocking(there, False)
        text = b""
        while True:
            try:
                text += os.read(there, 65536)
            except (BlockingIOError, OSError):
                break
    os.close(there)
    said.append(text.decode())


@pytest.mark.parametrize("columns", [120, 60, 40])
def test_on_a_terminal_a_run_is_one_line_and_its_evaluations(
    tmp_path: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal(columns) as (stream, said):
        train(tmp_path, stream)
    text = said[0].replace("\r\n", "\n")
    lines = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", text)]
    assert max(len(line.rstrip()) for line in lines if line) < columns
    assert "{" not in text
    standing = [line for line in (part.split("\r")[-1] for part in text.split("\n")) if line.strip()]
    shown = [ESCAPES.sub("", line).strip() for line in standing]
    evaluations = [line for line in shown if line.startswith("step ")]
    assert evaluations == [line for line in shown if "held-out loss" in line]
    assert len(evaluations) == 2
    assert any("4/4" in line and "loss" in line for line in shown)
    assert ("tokens/s" in text) is (columns == 120)
    assert "\x1b[32m" in text


def test_no_color_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal(100) as (stream, said):
        train(tmp_path, stream)
        assert draws_lines(stream)
        assert not takes_colours(stream)
    assert "\x1b[3" not in said[0]
    assert "━" in said[0]


@pytest.mark.parametrize("how", ["a file", "disable_tqdm", "TERM=dumb"])
def test_elsewhere_every_entry_is_a_plain_line(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb" if how == "TERM=dumb" else "xterm")
    if how == "a file":
        stream = io.StringIO()
        trainer = train(tmp_path, stream)
        text = stream.getvalue()
    else:
        with terminal(80) as (stream, said):  # type: ignore[assignment]
            trainer = train(tmp_path, stream, disable_tqdm=how == "disable_tqdm")
        text = said[0].replace("\r\n", "\n")
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for number, entry in enumerate(entries, start=1):
        (line,) = [one for one in lines if one.startswith(f"step {number}/4  loss ")]
        assert f"loss {entry['loss']:.3f}" in line
        assert f"accuracy {entry['rewards/accuracies']:.2f}" in line
        assert f"margin {entry['margins/mean']:+.2f}" in line
        assert "beta 0.1" in line
        assert "tokens/s" in line
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [line for line in lines if "held-out loss" in line] == [
        line for line in lines for loss in evaluated if f"held-out loss {loss:.3f}" in line
    ]
    assert f"held-out {evaluated[0]:.3f}" in next(line for line in lines if line.startswith("step 3/4"))
    assert re.fullmatch(r"4 steps in \d+ s", lines[-1])
    assert len(lines) == 4 + 2 + 1


def test_a_narrow_terminal_loses_the_least_important_first() -> None:
    kept = []
    for columns in range(120, 0, -1):
        line = progress_line(30, 120, PARTS, columns=columns, coloured=False)
        assert len(line) < columns
        kept.append([rank for rank in sorted(PARTS) if PARTS[rank] in line])
    assert kept[0] == sorted(PARTS)
    for ranks in kept:
        assert ranks == list(range(len(ranks)))


def test_the_bar_is_full_at_the_end_and_empty_at_the_start() -> None:
    first, last = (progress_line(step, 120, {}, columns=60, coloured=False) for step in (0, 120))
    assert "━" not in first
    assert "╌" not in last
    assert progress_line(0, 0, {}, columns=60, coloured=False).endswith("0/0")


def test_it_stands_in_the_place_of_the_usual_and_of_nothing_else(tmp_path: Path) -> None:
    trainer = PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(tmp_path),
        train_dataset=random_pairs(4),
        processing_class=word_tokenizer(),
        method=DPO(),
    )
    kinds = [type(one) for one in trainer.callback_handler.callbacks]
    assert kinds.count(ProgressLine) == 1
    assert not {PrinterCallback, ProgressCallback} & set(kinds)


def test_streams_without_a_terminal_are_80_columns_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    closed = io.StringIO()
    closed.close()
    for stream in (io.StringIO(), closed, None):
        assert not draws_lines(stream)  # type: ignore[arg-type]
        assert columns_of(stream) >= 1  # type: ignore[arg-type]
