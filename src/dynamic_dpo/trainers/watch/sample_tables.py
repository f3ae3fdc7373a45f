"""Samples in trackers: as texts or tables, where a tracker takes them; its numbers every tracker gets from the log.

What a model wrote is shown as it stands: characters that would act are replaced, and no tracker takes it for markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dynamic_dpo.pages.text import shown
from dynamic_dpo.runs.samples import Row

COLUMNS = ("step", "prompt", "text", "num_tokens", "finished")


def show_in_trackers(callbacks: Iterable[Any], rows: Sequence[Row], step: int) -> None:
    """Show the samples of a time in each of a run's trackers that takes texts.

    Args:
        callbacks: The trainer's callbacks, among them those of its trackers.
        rows: The samples.
        step: The optimizer step.
    """
    for callback in callbacks:
        show = _SHOWN_BY.get(type(callback).__name__)
        if show is not None:
            show(callback, rows, step)


def as_table(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return samples as columns of a table, texts fit to be shown."""
    cells = [{**row, "prompt": shown(row["prompt"]), "text": shown(row["text"])} for row in rows]
    return {name: [row[name] for row in cells] for name in COLUMNS}


def as_block(row: Row) -> str:
    """Return a sample as Markdown that takes every character for itself: indented, it is code.

    Example:
        >>> as_block({"prompt": "Why?", "text": "<b>"})
        'prompt:\\n\\n    Why?\\n\\nsample:\\n\\n    <b>'
    """
    blocks = (
        "\n".join(f"    {line}" for line in shown(row[name]).split("\n")) for name in ("prompt", "text")
    )
    return "prompt:\n\n{}\n\nsample:\n\n{}".format(*blocks)


def _tensorboard(callback: Any, rows: Sequence[Row], step: int) -> None:
    if callback.tb_writer is not None:
        for number, row in enumerate(rows, start=1):
            callback.tb_writer.add_text(f"samples/prompt {number}", as_block(row), step)


def _wandb(callback: Any, rows: Sequence[Row], step: int) -> None:
    import wandb

    if wandb.run is not None:
        table = as_table(rows)
        data = [list(cells) for cells in zip(*table.values(), strict=True)]
        wandb.log({"samples": wandb.Table(columns=list(table), data=data), "train/global_step": step})


def _mlflow(callback: Any, rows: Sequence[Row], step: int) -> None:
    import mlflow

    if mlflow.active_run() is not None:
        # Lines of a later time are added to the table.
        mlflow.log_table(as_table(rows), artifact_file="samples.json")


def _trackio(callback: Any, rows: Sequence[Row], step: int) -> None:
    import pandas
    import trackio

    table = trackio.Table(dataframe=pandas.DataFrame(as_table(rows)))
    trackio.log({"samples": table, "train/global_step": step})


def _swanlab(callback: Any, rows: Sequence[Row], step: int) -> None:
    import swanlab

    texts = [swanlab.Text(shown(row["text"]), caption=shown(row["prompt"], most=200)) for row in rows]
    swanlab.log({"samples": texts}, step=step)


_SHOWN_BY: dict[str, Callable[[Any, Sequence[Row], int], None]] = {
    "MLflowCallback": _mlflow,
    "SwanLabCallback": _swanlab,
    "TensorBoardCallback": _tensorboard,
    "TrackioCallback": _trackio,
    "WandbCallback": _wandb,
}
