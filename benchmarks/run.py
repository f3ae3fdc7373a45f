"""Training side by side: ours, TRL at its best, TRL as its documentation suggests, and the matmul limit.

    python benchmarks/run.py                                  # SmolLM2-135M, 96 HH pairs, 3 rounds: `make bench`
    python benchmarks/run.py --model tiny --pairs 8 --rounds 1 --pairs-per-step 4    # seconds, to see it work

The same token ids in the same order for all, every run in a process of its own, in alternation; medians over
rounds. See benchmarks/README.md for what each column means.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.jobs import Job, Result, run_rounds
from workbench.machine import warn_if_busy
from workbench.options import Workload, make_job, make_parser, make_workload
from workbench.plots import plot_training
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
from workbench.workload import needed_tokens

NAMES = ("ours", "trl-best", "trl-documented", "trl-denormals", "matmul-limit")
DEVICE_BATCH = {"trl-best": 1, "trl-documented": 8, "trl-denormals": 1}


def titles_for(pairs_per_step: int) -> dict[str, str]:
    """Return what tables call the trainers: TRL by device batch × accumulation."""

    def trl(name: str) -> str:
        batch = min(DEVICE_BATCH[name], pairs_per_step)
        return f"TRL, {batch} × {pairs_per_step // batch}"

    return {
        "ours": "ours",
        "trl-best": trl("trl-best"),
        "trl-documented": trl("trl-documented"),
        "trl-denormals": f"{trl('trl-denormals')}, denormals kept",
        "matmul-limit": "matmul limit",
    }


def make_jobs(options: argparse.Namespace, workload: Workload) -> dict[str, Job]:
    """Return the jobs that the options name.

    Raises:
        SystemExit: If there is no job of a name.
    """
    names = options.only.split(",") if options.only else list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        raise SystemExit(f"--only {','.join(unknown)}: choose from {', '.join(NAMES)}")

    def job(name: str) -> Job:
        if name == "ours":
            return make_job(options, workload, "ours")
        if name == "matmul-limit":
            return make_job(options, workload, "matmul")
        batch = min(DEVICE_BATCH[name], options.pairs_per_step)
        if options.pairs_per_step % batch:
            raise SystemExit(
                f"--pairs-per-step {options.pairs_per_step} is no multiple of TRL's device batch, {batch}"
            )
        return make_job(options, workload, "trl", device_batch=batch, flush_denormal=name != "trl-denormals")

    return {name: job(name) for name in names}


def figures_of(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Return medians and ratios, by trainer, and the largest difference of losses from TRL's."""
    speeds = {name: median_of(runs, lambda r: r.pairs_per_second) for name, runs in results.items()}
    scored = {name: median_of(runs, lambda r: r.reference_pairs_per_second) for name, runs in results.items()}
    rows = {
        name: {
            "pairs_per_second": speeds[name],
            "needed_tokens_per_second": median_of(runs, lambda r: r.tokens_per_second),
            "computed_per_needed": median_of(runs, lambda r: r.computed_positions / r.needed_tokens),
            "peak_bytes": median_of(runs, lambda r: r.peak_bytes) or None,
            "reference_pairs_per_second": scored[name],
            "share_of_limit": ratio(speeds[name], speeds.get("matmul-limit")),
            "ours_is_times_faster": ratio(speeds.get("ours"), speeds[name]),
            "our_reference_is_times_faster": ratio(scored.get("ours"), scored[name]),
        }
        for name, runs in results.items()
    }
    limit = results.get("matmul-limit", ())
    return {
        "trainers": rows,
        "loss_difference": loss_difference(results),
        "same_token_ids": same_ids(results),
        "matmul_gflops": median_of(limit, lambda r: r.flops / r.training_seconds / 1e9),
    }


def loss_difference(results: Mapping[str, Sequence[Result]]) -> float | None:
    """Return the largest relative difference of a step's loss, ours against any of TRL's runs."""
    theirs = [run for name, runs in results.items() if name.startswith("trl") for run in runs]
    differences = [
        largest_relative_difference(our.losses, their.losses)
        for our in results.get("ours", ())
        for their in theirs
    ]
    return max(differences, default=None)


def to_markdown(figures: Mapping[str, Any], titles: Mapping[str, str], facts: str) -> str:
    """Return the findings as a heading, a table and remarks."""
    header = [
        "trainer", "pairs/s", "needed tokens/s", "computed per needed token", "peak memory, GB", "share of limit",
        "ours is faster", "reference pass, pairs/s", "ours is faster there",
    ]  # fmt: skip
    rows = [
        [
            titles[name],
            number(row["pairs_per_second"], 3),
            number(row["needed_tokens_per_second"], 0),
            number(row["computed_per_needed"]),
            gigabytes(row["peak_bytes"]),
            percent(row["share_of_limit"]),
            _times(name, row["ours_is_times_faster"]),
            number(row["reference_pairs_per_second"], 2),
            _times(name, row["our_reference_is_times_faster"]),
        ]
        for name, row in figures["trainers"].items()
    ]
    remarks = [facts]
    if (difference := figures["loss_difference"]) is not None:
        remarks.append(
            f"The largest relative difference between our loss of a step and TRL's is {difference:.1e}."
        )
    if figures["matmul_gflops"]:
        remarks.append(f"The model's matrix products ran at {figures['matmul_gflops']:.0f} GFLOP/s.")
    return f"### Training\n\n{table(header, rows)}\n\n{' '.join(remarks)}"


def _times(name: str, value: float | None) -> str:
    # Ours against itself, or as a fraction of the limit, says nothing new.
    return number(value if name.startswith("trl") else None, 2, " ×")


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--documented-rounds", type=int, help="rounds of TRL at 8 × 2 (default: as --rounds)")
    parser.add_argument("--denormals-rounds", type=int, default=1, help="rounds of TRL with denormals kept")
    parser.add_argument("--only", help=f"comma-separated, from {', '.join(NAMES)}")
    options = parser.parse_args(arguments)
    warn_if_busy()
    workload = make_workload(options)
    documented = options.rounds if options.documented_rounds is None else options.documented_rounds
    fewer_rounds = {
        "trl-documented": documented,
        "trl-denormals": min(options.denormals_rounds, options.rounds),
    }
    results = run_rounds(
        make_jobs(options, workload),
        options.out,
        rounds=options.rounds,
        fewer_rounds=fewer_rounds,
        resume=options.resume,
    )
    found = {name: runs for name, runs in results.items() if runs}
    figures = figures_of(found)
    facts = (
        f"{options.model}, {len(workload.pairs)} pairs in file order, {options.pairs_per_step} a step, "
        f"{needed_tokens(workload.pairs) / len(workload.pairs):.0f} needed tokens a pair; "
        f"median of {options.rounds} rounds"
    )
    titles = titles_for(options.pairs_per_step)
    fewer = [f"{titles[name]}: {len(runs)}" for name, runs in found.items() if len(runs) < options.rounds]
    facts += f" ({', '.join(fewer)})." if fewer else "."
    publish("training", to_markdown(figures, titles, facts), options.out, results=found, figures=figures)
    plot_training(found, titles, options.out / "training.png")
    if not figures["same_token_ids"]:
        raise SystemExit("the trainers did not train on the same token ids: the comparison above is void")
    if missing := [name for name, runs in results.items() if not runs and fewer_rounds.get(name, 1)]:
        raise SystemExit(f"without result: {', '.join(missing)}; see log.txt in {options.out}/round-1")


if __name__ == "__main__":
    main()
