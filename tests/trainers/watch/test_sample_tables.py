"""Samples as trackers get them: no text acts, none is lost, and TensorBoard's file holds them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from dynamic_dpo.trainers.watch.sample_tables import COLUMNS, as_block, as_table, show_in_trackers
from hostile_texts import HOSTILE, named


def row(text: str) -> dict[str, Any]:
    return {"step": 3, "prompt": text, "text": text, "num_tokens": 2, "finished": True, "token_ids": [1, 2]}


@pytest.mark.parametrize("text", HOSTILE, ids=named)
def test_a_hostile_text_is_code_in_markdown_and_fit_for_any_file(text: str) -> None:
    lines = as_block(row(text)).split("\n")
    assert all(line.startswith("    ") for line in lines if line and line not in ("prompt:", "sample:"))
    assert sum(line in ("prompt:", "sample:") for line in lines) == 2
    table = as_table([row(text)])
    assert tuple(table) == COLUMNS
    json.dumps(table, ensure_ascii=False).encode()
    assert "\x1b" not in table["text"][0]


def test_every_text_is_written_for_tensorboard(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path))
    # It is found by the name of its class, as the trainer makes it.
    callback = type("TensorBoardCallback", (SimpleNamespace,), {})(tb_writer=writer)
    show_in_trackers([callback, object()], [row(text) for text in HOSTILE[:50]], 3)
    writer.close()
    (file,) = tmp_path.iterdir()
    assert all(f"samples/prompt {number}".encode() in file.read_bytes() for number in range(1, 51))
