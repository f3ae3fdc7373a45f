"""The margin log: every controller update leaves its margins and what the controller made of them.

``margins.jsonl`` and ``epoch_*/step_*.npy`` hold the margins, ``controller.jsonl`` the controller's reading.
In all of them updates count from 1.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.runs.files import CONTROLLER, MARGIN_LOG_FOLDER, MARGINS
from dynamic_dpo.utils.files import sync, write_refused
from dynamic_dpo.utils.names import path_inside
from dynamic_dpo.utils.settings import check_settings, documented, setting

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("dynamic_dpo")


@documented()
@dataclass(frozen=True)
class MarginLogConfig:
    """Where and how margins are logged."""

    log_dir: str = setting(
        MARGIN_LOG_FOLDER,
        "Folder of margins.jsonl and the .npy files; a relative one lies in save_dir.",
        key="margin_log.log_dir",
        not_empty=True,
    )
    jsonl_name: str = setting(MARGINS, "Name of the file of margin statistics.", not_empty=True)
    jsonl_sample_size: int = setting(
        32, "Margins quoted in each line of margins.jsonl.", key="margin_log.jsonl_sample_size", ge=0
    )
    save_per_rank: bool = setting(
        False, "Let every rank write its margins, not the first alone.", key="margin_log.save_per_rank"
    )

    def __post_init__(self) -> None:
        check_settings(self)

    def open(self, output_dir: str | Path, *, rank: int, num_ranks: int) -> list[MarginLog]:
        """Return this rank's logs: the main process's of all pairs first, then the rank's own."""
        folder = Path(self.log_dir).expanduser()
        if not folder.is_absolute():
            folder = path_inside(output_dir, self.log_dir, what="the margin log's log_dir")
        # A file beside the folder would not be moved, cut and resumed with it.
        path_inside(folder, self.jsonl_name, what="the margin log's jsonl_name")

        def log(where: Path, *, local: bool) -> MarginLog:
            return MarginLog(
                where, jsonl_name=self.jsonl_name, sample_size=self.jsonl_sample_size, local=local
            )

        logs = [log(folder, local=False)] if rank == 0 else []
        if self.save_per_rank and num_ranks > 1:
            logs.append(log(folder / f"rank_{rank:03d}", local=True))
        return logs


class MarginLog:
    """Appends to one margin log.

    Args:
        folder: Where the log lives.
        jsonl_name: Name of the file of margin statistics.
        sample_size: Margins that stand in each line itself.
        local: Whether it holds one rank's pairs instead of all ranks'.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        jsonl_name: str = MarginLogConfig.jsonl_name,
        sample_size: int = MarginLogConfig.jsonl_sample_size,
        local: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.margins_path = self.folder / jsonl_name
        self.controller_path = self.folder / CONTROLLER
        self.sample_size = sample_size
        self.local = local
        self._unsynced: list[Path] = []

    def write(
        self, margins: Tensor, *, epoch: int, step: int, update: int, reading: Mapping[str, float]
    ) -> None:
        """Append one controller update.

        Args:
            margins: The controller batch. Shape [N].
            epoch: Number of the epoch, from 0.
            step: Number of the optimizer step, from 1.
            update: Number of the controller update, from 1.
            reading: What the method says of the update; a prefix up to ``/`` is dropped from its keys.
        """
        # Here because it loads torch, and files of settings are checked without it.
        from dynamic_dpo.loss.dpo_loss import compute_and_log_model_margin

        line: dict[str, float] = {"epoch": epoch, "step": step, "update": update}
        line |= {key.rsplit("/", 1)[-1]: value for key, value in reading.items()}
        try:
            record = compute_and_log_model_margin(
                margins,
                self.folder / f"epoch_{epoch:03d}",
                epoch,
                update,
                self.margins_path,
                sample_size=self.sample_size,
            )
            self._unsynced.append(Path(str(record["npy"])))
            with self.controller_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            advice = write_refused(error)
            raise CheckpointError(
                f"the margin log in {self.folder} cannot be written: {error}. {advice or 'look at the folder'}; then "
                "resume: what comes after the last checkpoint is written again"
            ) from error

    def sync(self) -> dict[str, int]:
        """Bring what was written to the disk; return how many bytes the two files of lines have."""
        for path in (*self._unsynced, *{path.parent for path in self._unsynced}):
            if path.exists():
                sync(path)
        self._unsynced.clear()
        sizes = {}
        for path in (self.margins_path, self.controller_path):
            if path.is_file():
                sync(path)
                sizes[path.name] = path.stat().st_size
        return sizes

    def resume_at(self, updates: int) -> None:
        """Cut off what lies after ``updates`` controller updates: a resumed run writes it again.

        A kill in the middle of an append leaves half a line, which was never acknowledged. What should lie before
        and does not was taken away by someone, and is warned of.
        """
        for path, key in ((self.margins_path, "step"), (self.controller_path, "update")):
            found = _cut_after(path, key, updates)
            if (missing := updates - len(found & set(range(1, updates + 1)))) and self.folder.exists():
                logger.warning("%s lacks %d of %d updates: it was cut or removed", path, missing, updates)
        for npy in self.folder.glob("epoch_*/step_*.npy"):
            if int(npy.stem.removeprefix("step_")) > updates:
                npy.unlink()

    def start_anew(self) -> Path | None:
        """Move an earlier run's log out of the way; return where it went, or ``None`` if there was none."""
        if not self.margins_path.exists() and not self.controller_path.exists():
            return None
        number = 1
        while (moved := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        self.folder.rename(moved)
        return moved


def _cut_after(path: Path, key: str, last: int) -> set[int]:
    """Cut a file of JSON lines after the line numbered ``last``; return the numbers that remain."""
    numbers: set[int] = set()
    if not path.is_file():
        return numbers
    with path.open("r+b") as file:
        end = position = 0
        for line in file:
            position += len(line)
            try:
                number = int(json.loads(line)[key])
            except (ValueError, KeyError, TypeError):
                continue
            if number > last:
                break
            # A line that lost only its end is written again with it.
            if line.endswith(b"\n"):
                numbers.add(number)
                end = position
        file.truncate(end)
        os.fsync(file.fileno())
    return numbers
