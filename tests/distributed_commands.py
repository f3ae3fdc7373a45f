"""Commands that cannot be carried out, on several ranks; usage: ``distributed_commands.py FOLDER CONFIG``.

Each rank leaves each command's exit code and what it said.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr
from pathlib import Path

import torch

from dynamic_dpo.cli import train_dpo
from dynamic_dpo.errors import ModelError
from dynamic_dpo.utils.process_group import end_process, process_group


def said(config: str, *settings: str) -> tuple[int, str]:
    with redirect_stderr(io.StringIO()) as spoken:
        code = train_dpo.main(["--config", config, *settings])
    lines = [line for line in spoken.getvalue().splitlines() if line.startswith("error")]
    return code, "\n".join(lines)


def own_errors(rank: str) -> str:
    """Return what a rank raises that has a fault of its own, and whether it is taken for another's."""
    try:
        with process_group():
            raise ModelError(f"rank {rank} has a fault of its own")
    except ModelError as error:
        return f"{error}: {error.said}"


def main(folder: Path, config: str) -> None:
    taken = folder / "taken"
    rank = os.environ["RANK"]
    if rank == "0":
        taken.mkdir()
        (taken / "something.txt").write_text("")
    result = {
        "wrong setting": said(config, "risk_test.delta=7"),
        "no file": said(f"{config}.not_there"),
        "taken": said(config, f"dpo_training.save_dir={taken}"),
        "no model": said(config, "policy_name=./nowhere", f"dpo_training.save_dir={folder / 'new'}"),
        "own": own_errors(rank),
    }
    (folder / f"result_{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    # One group for all commands: a launch has no second one.
    with process_group():
        main(Path(sys.argv[1]), sys.argv[2])
    assert not torch.distributed.is_initialized()
    end_process(0)
