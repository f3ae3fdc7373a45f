"""Settings of every test: one thread, no network, a reference store of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell starts what runs in its background with Ctrl-C ignored, nohup what it starts with SIGHUP; tests of
# interruption mean the usual, and so do the processes that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _own_reference_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYNAMIC_DPO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _denormals_as_usual() -> None:
    # A trainer flushes denormals for the rest of its process, and hypothesis then refuses to draw floats.
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder of real rows and golden traces beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the folder ../shared with real rows and golden traces is absent")
    return folder
