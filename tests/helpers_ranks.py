"""Starts scripts and commands on several ranks of this machine and reads what each rank leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from places import ROOT

HERE = Path(__file__).parent
# Several times what the longest takes on a busy machine: a hang is found, slowness is none.
SECONDS = 400
# Of what was printed: as many characters as the traces of all ranks take.
SHOWN = 30_000
FSDP2 = ROOT / "configs" / "accelerate" / "fsdp2.yaml"


def launched(
    script: str, folder: Path, *arguments: object, ranks: int, sharded: bool = False
) -> list[dict[str, Any]]:
    """Run ``script FOLDER ARGUMENTS...`` on so many ranks; return each rank's ``result_RANK.json``.

    Args:
        script: A file of this folder.
        folder: Made here.
        arguments: What else the script is given.
        ranks: Processes.
        sharded: Whether FSDP2 shards the model over them, as the shipped launch file says.
    """
    folder.mkdir()
    status, output = run_ranks([str(HERE / script), str(folder), *arguments], folder, ranks, sharded=sharded)
    assert status == 0, output[-SHOWN:]
    return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(ranks)]


def run_ranks(
    command: Sequence[object],
    folder: Path,
    ranks: int,
    *,
    sharded: bool = False,
    launch_options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> tuple[int, str]:
    """Run a Python command on so many ranks; return the launcher's exit status and all that was printed.

    Args:
        command: ``SCRIPT.py ARGUMENTS...`` or ``-m MODULE ARGUMENTS...``.
        folder: An existing folder; the cache of reference log-probabilities goes there.
        ranks: Processes; one is started without a launcher.
        sharded: Whether FSDP2 shards over them; `accelerate launch` starts them then, with the shipped file.
        launch_options: More options of `accelerate launch`, such as ``--fsdp_state_dict_type FULL_STATE_DICT``.
        environment: Added to this process's own.
        seconds: After so long all of them are killed, and the test fails.
    """
    port = str(free_port())
    if sharded:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(FSDP2)]
        launcher += ["--num_processes", str(ranks), "--main_process_port", port, *launch_options]
        launcher += [str(HERE / "sharded_on_cpu.py")]
    elif ranks > 1:
        # What `accelerate launch` starts itself; its own --cpu starts one process, or mpirun.
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--max_restarts", "0"]
        launcher += ["--master_addr", "127.0.0.1", "--master_port", port]
    else:
        launcher = []
    process = subprocess.Popen(
        [sys.executable, *launcher, *map(str, command)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "GLOO_SOCKET_IFNAME": "lo",
            "DYNAMIC_DPO_CACHE": str(folder / "cache"),
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
