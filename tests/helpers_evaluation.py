"""A whole evaluation in small: tiny models, HH rows, and a judge's server on loopback that counts its questions."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tiny import tiny_llama, word_tokenizer

KEY = "sk-planted-7f3a9c1e5b"


class CountingJudge:
    """Answers every question by a hash of its text: 60 % A, 25 % B, 15 % tie; counts the questions.

    Attributes:
        asked: Question to how often it was asked.
        keys: The authorisations that came with them.
    """

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][-1]["content"]
                judge.asked[question] += 1
                judge.keys.add(self.headers["Authorization"])
                time.sleep(seconds)
                share = hashlib.sha256(question.encode()).digest()[0] / 256
                verdict = "A" if share < 0.6 else "B" if share < 0.85 else "tie"
                message = {
                    "role": "assistant",
                    "content": f"I compared both. <b>Mine</b>.\n\nVerdict: {verdict}",
                }
                reply = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }  # fmt: skip
                answer = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # A client that was killed has closed its connection.

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def save_models(folder: Path) -> dict[str, str]:
    for seed, name in enumerate(("start", "trained")):
        tiny_llama(seed=seed).save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("start", "trained")}


def write_hh_rows(path: Path, count: int) -> Path:
    rows = []
    for n in range(count):
        prompt = f"\n\nHuman: w{n} w{n + 1}\n\nAssistant: w3 w4\n\nHuman: w{n + 2}\n\nAssistant:"
        rows.append({"chosen": f"{prompt} w5 w6", "rejected": f"{prompt} w7"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_config(folder: Path, models: dict[str, str], rows: Path, base_url: str, **sections: Any) -> Path:
    """Write an evaluation file; JSON is YAML."""
    config: dict[str, Any] = {
        "dataset": {"name": str(rows), "max_samples": 6, "seed": 3},
        "models": models,
        "generation": {"max_new_tokens": 4, "batch_size": 2, "device": "cpu", "seed": 1},
        "judge": {"base_url": base_url, "template": "hh-v1", "concurrency": 2},
        "gpt4_oracle": {"model": "a-judge", "max_retries": 1, "initial_backoff": 0.01, "max_backoff": 0.01},
        "statistics": {"bootstrap": 200},
        "output": {"dir": str(folder)},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(json.dumps(config))
    return path


def evaluate_in_a_process(argv: list[str], environment: dict[str, str], output: str) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch

    torch.set_num_threads(1)
    from dynamic_dpo.cli import evaluate

    os._exit(evaluate.main(argv))


def start(argv: list[str], *, output: str | Path = os.devnull) -> Any:
    """Begin an evaluation in a process of its own, which has loaded everything already; it prints into a file."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "transformers", "datasets", "openai", "dynamic_dpo.eval.report.stage",
         "dynamic_dpo.eval.judges.chat_judge", "dynamic_dpo.config.schema", "statsmodels.stats.proportion",
         "transformers.models.llama.modeling_llama"]
    )  # fmt: skip
    process = context.Process(target=evaluate_in_a_process, args=(argv, {"OPENAI_API_KEY": KEY}, str(output)))
    process.start()
    return process


def kill_when(
    process: Any, reached: Callable[[], bool], *, number: int = signal.SIGKILL, seconds: float = 60.0
) -> bool:
    """Send a signal as soon as something is reached; return whether the process was still running."""
    deadline = time.monotonic() + seconds
    while process.exitcode is None and not reached():
        assert time.monotonic() < deadline, "the evaluation neither ended nor got there"
        time.sleep(0.002)
    alive = process.exitcode is None
    if alive:
        os.kill(process.pid, number)
    process.join()
    return alive
