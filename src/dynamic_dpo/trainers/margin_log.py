"""The margin log: every controller update leaves its margins and what the controller made of them.

``margins.jsonl`` and ``epoch_*/step_*.npy`` hold the margins, ``controller.jsonl`` the controller's reading.
In all of them updates count from 1. The log knows neither trainer nor method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dynamic_dpo.loss.dpo_loss import compute_and_log_model_margin
from dynamic_dpo.utils.files import write_text


@dataclass(frozen=True)
class MarginLogConfig:
    """Where and how margins are logged.

    Attributes:
        log_dir: Folder of the log; a relative one lies in the run's output folder.
        jsonl_name: Name of the file of margin statistics.
        jsonl_sample_size: Margins that stand in each line itself.
        save_per_rank: Whether every rank also logs its own pairs, in ``rank_*`` below the folder.
    """

    log_dir: str = "logs/margins"
    jsonl_name: str = "margins.jsonl"
    jsonl_sample_size: int = 32
    save_per_rank: bool = False

    def open(self, output_dir: str | Path, *, rank: int, num_ranks: int) -> list[MarginLog]:
        """Return this rank's logs: the main process's of all pairs first, then the rank's own."""
        folder = Path(output_dir) / Path(self.log_dir).expanduser()

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
        jsonl_name: str = "margins.jsonl",
        sample_size: int = 32,
        local: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.margins_path = self.folder / jsonl_name
        self.controller_path = self.folder / "controller.jsonl"
        self.sample_size = sample_size
        self.local = local

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
        compute_and_log_model_margin(
            margins,
            self.folder / f"epoch_{epoch:03d}",
            epoch,
            update,
            self.margins_path,
            sample_size=self.sample_size,
        )
        line: dict[str, float] = {"epoch": epoch, "step": step, "update": update}
        line |= {key.rsplit("/", 1)[-1]: value for key, value in reading.items()}
        with self.controller_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def resume_at(self, updates: int) -> None:
        """Drop what lies after ``updates`` controller updates: a resumed run writes it again."""
        for path, key in ((self.margins_path, "step"), (self.controller_path, "update")):
            if not path.is_file():
                continue
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # A kill in the middle of an append leaves half a line: it was never acknowledged.
                if record[key] <= updates:
                    kept.append(line + "\n")
                elif "npy" in record:
                    Path(record["npy"]).unlink(missing_ok=True)
            write_text(path, "".join(kept))

    def start_anew(self) -> Path | None:
        """Move an earlier run's log out of the way; return where it went, or ``None`` if there was none."""
        if not self.margins_path.exists() and not self.controller_path.exists():
            return None
        number = 1
        while (moved := self.folder.with_name(f"{self.folder.name}.old-{number}")).exists():
            number += 1
        self.folder.rename(moved)
        return moved
