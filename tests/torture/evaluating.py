"""SIGTERM while models write and while a judge is asked: no output is written twice, no question asked twice."""

from __future__ import annotations

import json
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

from helpers_evaluation import CountingJudge, kill_when, save_models, start, write_config, write_hh_rows
from torture.phases import Outcome

# Of the report, what a clock says.
REPORT = ("report.html", "report.md", "results.csv", "summary.json", "prompts.jsonl")


def stop_evaluation(count: int, *, seed: int = 0) -> dict[str, Outcome]:
    """Stop one evaluation by SIGTERM ``count`` times while it generates and as often while it judges.

    Returns:
        What came of it, for generation and for judging.
    """
    num_prompts = 3 * count + 3
    outcomes = {"generation": Outcome(), "judging": Outcome()}
    with tempfile.TemporaryDirectory() as scratch:
        folder, server = Path(scratch), CountingJudge(seconds=0.02)
        models, rows = save_models(folder / "models"), write_hh_rows(folder / "rows.jsonl", num_prompts + 5)
        settings = {"dataset": {"max_samples": num_prompts}}
        try:
            whole = write_config(folder / "whole", models, rows, server.base_url, **settings)
            assert _finish(whole) == 0
            asked_once = set(server.asked)
            server.asked.clear()
            config = write_config(folder / "stopped", models, rows, server.base_url, **settings)
            for phase, total in (("generation", 2 * num_prompts), ("judging", len(asked_once))):
                draw = random.Random(f"{phase} {seed}")
                apart = (total - 6) / count  # Room for what is finished after each signal.
                for number in range(count):
                    target = int(number * apart + draw.uniform(1, apart / 2))
                    _stop(config, folder / "stopped", phase, target, server, outcomes[phase])
            if (code := _finish(config)) != 0:
                outcomes["judging"].wrong.append(f"going on to the end: exit code {code}")
        finally:
            server.close()
        if set(server.asked) != asked_once:
            outcomes["judging"].wrong.append("other questions were asked than by the undisturbed evaluation")
        # Every reply that was under way has landed: not one question is paid for twice.
        outcomes["judging"].wrong += [f"asked {n} times" for n in server.asked.values() if n > 1]
        lines = [
            json.loads(line) for line in (folder / "stopped" / "generations.jsonl").read_text().splitlines()
        ]
        written = Counter((line["model"], line["id"], line["sample"]) for line in lines)
        outcomes["generation"].wrong += [f"{key} written {n} times" for key, n in written.items() if n > 1]
        ours, theirs = (_report(folder / name) for name in ("stopped", "whole"))
        outcomes["judging"].wrong += [f"another {name}" for name in REPORT if ours[name] != theirs[name]]
    return outcomes


def _stop(
    config: Path, folder: Path, phase: str, target: int, server: CountingJudge, outcome: Outcome
) -> None:
    def done() -> int:
        if phase == "judging":
            return len(server.asked)
        path = folder / "generations.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    # Not before this process has done something of its own.
    target = max(target, done() + 1)
    process = start(["--config", str(config)], output=config.with_suffix(".output"))
    if not kill_when(process, lambda: done() >= target, number=signal.SIGTERM):
        outcome.wrong.append(f"{phase} at {target}: ended with {process.exitcode} before the signal")
        return
    outcome.signals += 1
    if process.exitcode != 128 + signal.SIGTERM:
        outcome.wrong.append(f"{phase} at {target}: exit code {process.exitcode}")


def _finish(config: Path) -> int | None:
    process = start(["--config", str(config)], output=config.with_suffix(".output"))
    process.join(300)
    code: int | None = process.exitcode
    return code


def _report(folder: Path) -> dict[str, bytes]:
    found = {
        path.name: path.read_bytes() for path in folder.rglob("*") if path.name in (*REPORT, "manifest.json")
    }
    created = json.loads(found["manifest.json"])["created"].encode()
    return {name: found[name].replace(created, b"") for name in REPORT}
