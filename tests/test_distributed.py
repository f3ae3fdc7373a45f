"""Two ranks: one controller state everywhere, and the training of one rank with the same pairs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SECONDS = 150


def launched(folder: Path, *, ranks: int, scope: str, device_batch: int) -> list[dict[str, Any]]:
    """Run `distributed_run.py` on so many ranks of this machine; return what each rank ended with."""
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
        [*command, str(HERE / "distributed_run.py"), str(folder), scope, str(device_batch)],
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


@pytest.mark.timeout(2 * SECONDS + 30)
def test_two_ranks_train_as_one_and_hold_one_controller_state(tmp_path: Path) -> None:
    first, second = launched(tmp_path / "two", ranks=2, scope="step", device_batch=4)
    (alone,) = launched(tmp_path / "one", ranks=1, scope="step", device_batch=8)
    assert (first["ranks"], alone["ranks"]) == (2, 1)
    assert first["state"] == second["state"]
    assert first["updates"] == alone["updates"] == 6
    assert first["pairs_seen"] == alone["pairs_seen"] == 48

    beta, tau = alone["state"]["beta"], alone["state"]["test"]["tau"]
    assert beta != 0.1
    assert first["state"]["beta"] == pytest.approx(beta, rel=1e-10)
    assert first["state"]["test"]["tau"] == pytest.approx(tau, rel=1e-10)
    weights = [
        torch.load(tmp_path / name) for name in ("two/weights_0.pt", "two/weights_1.pt", "one/weights_0.pt")
    ]
    for name, expected in weights[2].items():
        assert expected.dtype == torch.float64
        assert torch.equal(weights[0][name], weights[1][name])
        assert (weights[0][name] - expected).norm() <= 1e-10 * expected.norm(), name

    # Logged numbers travel in float32.
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["margins"] == pytest.approx(alone["margins"], rel=1e-4, abs=1e-5)
    # Seven pairs on two ranks: the one that evens the ranks out is counted once.
    assert first["eval"] == pytest.approx(alone["eval"], rel=1e-4, abs=1e-5)
    assert first["eval"] == second["eval"]

    summary = json.loads((tmp_path / "two" / "run" / "run_summary.json").read_text())
    assert (summary["num_ranks"], summary["reference_computed"], summary["pairs_per_update"]) == (2, 31, 8)
    log = tmp_path / "two" / "run" / "logs" / "margins"
    batches = {
        path: [json.loads(line)["batch_size"] for line in path.read_text().splitlines()]
        for path in log.rglob("margins.jsonl")
    }
    assert batches == {
        log / "margins.jsonl": [8] * 6,
        log / "rank_000" / "margins.jsonl": [4] * 6,
        log / "rank_001" / "margins.jsonl": [4] * 6,
    }
    assert (tmp_path / "two" / "run" / "checkpoint-6" / "controller_state.json").is_file()
