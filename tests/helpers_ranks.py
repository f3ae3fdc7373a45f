"""Starts a script of the tests on several ranks of this machine and reads what each rank leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 150


def launched(script: str, folder: Path, *arguments: object, ranks: int) -> list[dict[str, Any]]:
    """Run ``script FOLDER ARGUMENTS...`` on so many ranks; return each rank's ``result_RANK.json``."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `accelerate launch` starts itself; its own --cpu starts one process, or mpirun.
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--max_restarts", "0"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    command = [sys.executable, *(launcher if ranks > 1 else [])]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "DYNAMIC_DPO_CACHE": str(folder / "cache"),
    }
    process = subprocess.Popen(
        [*command, str(HERE / script), str(folder), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, output[-4000:]
    return [json.loads((folder / f"result_{rank}.json").read_text()) for rank in range(ranks)]
