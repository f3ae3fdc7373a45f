"""Training a 1B-parameter Llama on a GPU, ours against TRL at its best: `make bench-gpu`.

    python benchmarks/gpu.py --rounds 3
    python benchmarks/gpu.py --checkpointing --model 1b --laws ultrafeedback

Random weights, bfloat16 arithmetic, 64 pairs a step, lengths as in HH-RLHF and as in UltraFeedback. TRL runs at
several device batches with what this machine has: its own fused head (always on), Liger's layers and FlashAttention
where they are installed, rows end to end where its version can. The fastest that fits counts. Needs a CUDA device.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.jobs import Job, Result, run_rounds
from workbench.models import SHAPES
from workbench.options import DEFAULT_OUT, engine_settings
from workbench.reports import publish
from workbench.tables import (
    gigabytes,
    largest_relative_difference,
    median_of,
    number,
    percent,
    ratio,
    same_ids,
    table,
)
from workbench.workload import LENGTH_LAWS, random_pairs, save_pairs

LAWS = ("hh", "ultrafeedback")
PAIRS_PER_STEP = 64
TRL_BATCHES = (4, 8, 16, 32)


def check_device() -> str:
    """Return the GPU's name.

    Raises:
        SystemExit: If there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            "this benchmark needs a CUDA device, and none is visible to torch; on a CPU run benchmarks/run.py instead"
        )
    return torch.cuda.get_device_name()


def best_options() -> dict[str, Any]:
    """Return what makes TRL fastest of what is installed here, as settings of a job."""
    from transformers.utils import is_flash_attn_2_available
    from trl.import_utils import is_liger_kernel_available

    flash = is_flash_attn_2_available()
    return {
        "attention": "flash_attention_2" if flash else "sdpa",
        "liger": bool(is_liger_kernel_available()),
        # Without FlashAttention, rows that lie end to end would attend to each other.
        "padding_free": flash,
    }


def make_jobs(options: argparse.Namespace, law: str, best: Mapping[str, Any]) -> dict[str, Job]:
    """Return ours, TRL's at each device batch, and the matmul limit, on pairs of one law of lengths."""
    vocabulary = SHAPES[options.model]["vocab_size"]
    pairs = random_pairs(LENGTH_LAWS[law], options.steps * options.pairs_per_step, vocabulary=vocabulary)
    path = save_pairs(options.out / "gpu" / f"pairs-{law}.json", pairs)

    def job(trainer: str, **settings: Any) -> Job:
        shared: dict[str, Any] = {
            "pairs_file": str(path),
            "model": options.model,
            "pairs_per_step": options.pairs_per_step,
            "max_length": LENGTH_LAWS[law].longest,
            "bf16": True,
            "checkpointing": options.checkpointing,
        }
        return Job(trainer, **shared | settings)

    batches = [batch for batch in TRL_BATCHES if options.pairs_per_step % batch == 0]
    return {
        "ours": job("ours", engine=engine_settings(options.engine)),
        **{f"TRL, {batch} at a time": job("trl", device_batch=batch, **best) for batch in batches},
        "matmul limit": job("matmul"),
    }


def rows_of_law(law: str, results: Mapping[str, Sequence[Result]]) -> list[list[str]]:
    """Return the table's rows of one law of lengths; a TRL batch that did not fit has dashes."""
    speeds = {name: median_of(runs, steady_pairs_per_second) for name, runs in results.items()}
    return [
        [
            f"{law}: {name}",
            number(speeds[name], 2),
            gigabytes(median_of(runs, lambda r: r.peak_training_bytes) or None),
            number(median_of(runs, lambda r: r.computed_positions / r.needed_tokens)),
            percent(ratio(speeds[name], speeds.get("matmul limit"))),
            number(ratio(speeds["ours"], speeds[name]) if name.startswith("TRL") else None, 2, " ×"),
        ]
        for name, runs in results.items()
    ]


def steady_pairs_per_second(result: Result) -> float:
    """Return pairs per second without the first step, in which kernels are chosen and compiled.

    Example:
        >>> steady_pairs_per_second(Result(12, 12, step_seconds=[9.0, 1.0, 1.0]))
        4.0
    """
    seconds = result.step_seconds
    if len(seconds) < 2:
        return result.pairs_per_second
    return result.num_pairs * (len(seconds) - 1) / len(seconds) / sum(seconds[1:])


def remark_of(
    options: argparse.Namespace, device: str, best: Mapping[str, Any], kept: Mapping[str, Sequence[Result]]
) -> str:
    """Return what was run, what TRL had, and whether both trained the same, in sentences."""
    theirs = [run for name, runs in kept.items() if ": TRL" in name for run in runs]
    end_to_end = "rows end to end" if any(run.padding_free for run in theirs) else "padded rows"
    if best["padding_free"] and end_to_end == "padded rows":
        end_to_end += " (this version cannot lay them end to end)"
    checkpointing = "computed again" if options.checkpointing else "kept"
    sentences = [
        f"{device}; Llama of random weights, size {options.model}, bfloat16, {options.pairs_per_step} pairs a step, "
        f"activations {checkpointing} on both sides, median of {options.rounds} rounds without their first step.",
        f"TRL with its fused head, {best['attention']}, {'Liger’s layers' if best['liger'] else 'no Liger'}, "
        f"{end_to_end}.",
    ]
    differences = [
        largest_relative_difference(ours.losses, run.losses)
        for law in options.laws
        for ours in kept.get(f"{law}: ours", ())
        for name, runs in kept.items()
        if name.startswith(f"{law}: TRL")
        for run in runs
    ]
    if differences:
        ids = all(
            same_ids({name: runs for name, runs in kept.items() if name.startswith(law)})
            for law in options.laws
        )
        sentences.append(
            f"{'The same' if ids else 'NOT the same'} token ids; losses of a step differ by at most "
            f"{percent(max(differences), 2)}."
        )
    return " ".join(sentences)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="1b", choices=list(SHAPES))
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LENGTH_LAWS))
    parser.add_argument("--pairs-per-step", type=int, default=PAIRS_PER_STEP)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--checkpointing", action="store_true", help="both compute activations again in the backward pass"
    )
    parser.add_argument("--engine", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args(arguments)
    device, best = check_device(), best_options()
    rows: list[list[str]] = []
    kept: dict[str, list[Result]] = {}
    way = "recomputed" if options.checkpointing else "kept"
    for law in options.laws:
        jobs = make_jobs(options, law, best)
        folder = options.out / "gpu" / f"{law}-{way}"
        results = run_rounds(jobs, folder, rounds=options.rounds, resume=options.resume)
        rows += rows_of_law(law, results)
        kept |= {f"{law}: {name}": runs for name, runs in results.items()}
    header = [
        "trainer", "pairs/s", "peak memory, GB", "computed per needed token", "share of limit", "ours is faster",
    ]  # fmt: skip
    publish(
        "gpu",
        f"### On a GPU\n\n{table(header, rows)}\n\n{remark_of(options, device, best, kept)}",
        options.out,
        results=kept,
        device=device,
        trl_options=best,
    )


if __name__ == "__main__":
    main()
