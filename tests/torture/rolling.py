"""SIGKILL and SIGTERM at random moments of a rollout: the same files in the end, nothing asked for twice."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from helpers_rollouts import first_number, rows_of, scoring, write_prompts
from tiny import tiny_llama, word_tokenizer
from torture.kill import Outcome
from torture.processes import Forked, moments

FILES = (
    "prompts.jsonl",
    "outputs.jsonl",
    "scores.jsonl",
    "pairs.jsonl",
    "dropped.jsonl",
    "summary.json",
    "report.html",
)
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w91{% endif %}"
)
ASKED = "DYNAMIC_DPO_TEST_ASKED"


def counted_score(text: str) -> float:
    """A score that leaves a line each time it is asked for, as a paid one would on a bill."""
    file = os.open(os.environ[ASKED], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, b"%d\n" % hash(text))
    os.close(file)
    time.sleep(0.002)
    return first_number(f"{len(text) % 7}.{sum(map(ord, text)) % 9} {text}")


def kill_rollouts(cycles: int, *, number: int = signal.SIGKILL, seed: int = 0, per_run: int = 5) -> Outcome:
    """Interrupt rollouts so many times in all, up to ``per_run`` times each, and let each come to its end."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        tiny_llama(seed=3).save_pretrained(model)
        word_tokenizer(template=TEMPLATE).save_pretrained(model)
        prompts = write_prompts(Path(scratch) / "prompts.jsonl", [f"w{n} w{n + 1}" for n in range(8)])
        _roll(model, prompts, Path(scratch) / "warm-up")
        start = time.monotonic()
        whole = Path(scratch) / "whole"
        code = Forked(partial(_roll, model, prompts, whole), whole.with_suffix(".output")).wait()
        longest = time.monotonic() - start
        assert code == 0, whole.with_suffix(".output").read_text()[-3000:]
        expected = {name: (whole / name).read_bytes() for name in FILES}
        num_asked = _num_asked(whole)
        when = iter(moments(100 * cycles, longest, seed))
        while outcome.kills < cycles:
            folder = Path(scratch) / f"run-{outcome.runs:04d}"
            output = folder.with_suffix(".output")
            kills = 0
            for _ in range(per_run):
                code = Forked(partial(_roll, model, prompts, folder), output).signal_after(next(when), number)
                if code == 0:
                    break
                assert code in (-number, 128 + number), output.read_text()[-3000:]
                kills += 1
            code = Forked(partial(_roll, model, prompts, folder), output).wait()
            assert code == 0, output.read_text()[-3000:]
            outcome.kills += kills
            outcome.runs += 1
            name = f"run {outcome.runs}, killed {kills} times"
            outcome.different += [
                f"{name}: {file}"
                for file, content in expected.items()
                if (folder / file).read_bytes() != content
            ]
            outcome.different += _asked_twice(
                name, folder, num_asked + (kills if number == signal.SIGKILL else 0)
            )
    return outcome


def _roll(model: Path, prompts: Path, folder: Path) -> None:
    from dynamic_dpo.eval.generate.settings import GenerationSettings
    from dynamic_dpo.eval.model_spec import ModelSpec
    from dynamic_dpo.rollouts.plan import PromptSource, RolloutPlan, Scoring
    from dynamic_dpo.rollouts.settings import AnswerFilters
    from dynamic_dpo.rollouts.stages import run_rollout

    torch.set_num_threads(1)
    os.environ[ASKED] = str(folder.with_suffix(".asked"))
    run_rollout(
        RolloutPlan(
            folder=folder,
            prompts=PromptSource({"name": str(prompts), "split": "train"}),
            policy=ModelSpec("policy", str(model)),
            generation=GenerationSettings(
                max_new_tokens=6, num_samples=3, batch_size=3, temperature=1.0, device="cpu"
            ),
            labels=Scoring({"counted": scoring(f"{__name__}:counted_score")}),
            filters=AnswerFilters(truncated=False),
            progress=False,
        )
    )


def _num_asked(folder: Path) -> int:
    return len(folder.with_suffix(".asked").read_bytes().splitlines())


def _asked_twice(name: str, folder: Path, most: int) -> list[str]:
    written = Counter((row["id"], row["sample"]) for row in rows_of(folder / "outputs.jsonl"))
    scored = Counter(row["key"] for row in rows_of(folder / "scores.jsonl"))
    faults = [f"{name}: {key} written {n} times" for key, n in (written + scored).items() if n > 1]
    # One question is under way at a time: a SIGKILL can cost no more, and a SIGTERM waits for it.
    if _num_asked(folder) > most:
        faults.append(f"{name}: {_num_asked(folder)} scores were asked for, at most {most} are right")
    return faults
