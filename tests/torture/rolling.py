"""SIGKILL and SIGTERM at random moments of a rollout or a loop of them: the same files, nothing asked for twice."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
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
    "generations.jsonl",
    "model.safetensors",
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
    return _interrupt(_roll, cycles, number=number, seed=seed, per_run=per_run)


def kill_loops(cycles: int, *, number: int = signal.SIGKILL, seed: int = 0, per_run: int = 5) -> Outcome:
    """Do the same to loops of two rounds of rollout, training and evaluation."""
    return _interrupt(_loop, cycles, number=number, seed=seed, per_run=per_run)


def _interrupt(
    run: Callable[[Path, Path, Path], None], cycles: int, *, number: int, seed: int, per_run: int
) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        tiny_llama(seed=3).save_pretrained(model)
        word_tokenizer(template=TEMPLATE).save_pretrained(model)
        prompts = write_prompts(Path(scratch) / "prompts.jsonl", [f"w{n} w{n + 1}" for n in range(8)])
        # Libraries are loaded once, before anything is forked.
        Forked(partial(run, model, prompts, Path(scratch) / "first"), Path(scratch) / "first.output").wait()
        _roll(model, prompts, Path(scratch) / "warm-up")
        start = time.monotonic()
        whole = Path(scratch) / "whole"
        code = Forked(partial(run, model, prompts, whole), whole.with_suffix(".output")).wait()
        longest = time.monotonic() - start
        assert code == 0, whole.with_suffix(".output").read_text()[-3000:]
        expected = _results(whole)
        num_asked = _num_asked(whole)
        when = iter(moments(100 * cycles, longest, seed))
        while outcome.kills < cycles:
            folder = Path(scratch) / f"run-{outcome.runs:04d}"
            output = folder.with_suffix(".output")
            kills = 0
            for _ in range(per_run):
                code = Forked(partial(run, model, prompts, folder), output).signal_after(next(when), number)
                if code == 0:
                    break
                assert code in (-number, 128 + number), output.read_text()[-3000:]
                kills += 1
            code = Forked(partial(run, model, prompts, folder), output).wait()
            assert code == 0, output.read_text()[-3000:]
            outcome.kills += kills
            outcome.runs += 1
            name = f"run {outcome.runs}, killed {kills} times"
            found = _results(folder)
            outcome.different += [
                f"{name}: {file}" for file in {*expected, *found} if found.get(file) != expected.get(file)
            ]
            outcome.different += _asked_twice(
                name, folder, num_asked + (kills if number == signal.SIGKILL else 0)
            )
    return outcome


def _results(folder: Path) -> dict[str, bytes]:
    """Return the files that must not hang on where a run was interrupted, by their place in its folder."""
    paths = (path for path in folder.rglob("*") if path.name in FILES and "checkpoint-" not in str(path))
    # What an evaluation and a loop say of themselves holds times.
    timed = ("evaluation/summary.json", "evaluation/report.html", "loop/summary.json", "loop/report.html")
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if not str(path).endswith(timed)
    }


def _loop(model: Path, prompts: Path, folder: Path) -> None:
    from dynamic_dpo.loops.plan import Stage
    from dynamic_dpo.loops.rounds import run_loop
    from dynamic_dpo.utils.signals import raise_if_requested
    from helpers_loops import in_this_process, loop_settings, plan_of

    torch.set_num_threads(1)
    os.environ[ASKED] = str(folder.with_suffix(".asked"))
    folder.mkdir(exist_ok=True)
    # Pairs say by its path which model has made them: all runs have one.
    os.chdir(folder)
    settings = loop_settings(Path(), str(model), output_dir="loop", earlier_pairs=0.5)
    settings["rollout"]["function"] = settings["evaluation"]["judge"]["function"] = (
        f"{__name__}:counted_score"
    )
    settings["evaluation"]["judge"]["concurrency"] = 1

    def run(stage: Stage) -> int:
        code = in_this_process(stage)
        raise_if_requested()
        return code

    run_loop(plan_of(settings, run))


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
    written = Counter(
        (str(path), row["fingerprint"], row["id"], row["sample"])
        for file in ("outputs.jsonl", "generations.jsonl")
        for path in folder.rglob(file)
        for row in rows_of(path)
    )
    scored = Counter(
        (str(path), row["key"]) for path in folder.rglob("scores.jsonl") for row in rows_of(path)
    )
    faults = [f"{name}: {key} written {n} times" for key, n in (written + scored).items() if n > 1]
    # One question is under way at a time: a SIGKILL can cost no more, and a SIGTERM waits for it.
    if _num_asked(folder) > most:
        faults.append(f"{name}: {_num_asked(folder)} scores were asked for, at most {most} are right")
    return faults
