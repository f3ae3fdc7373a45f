"""Peak memory against the size of a step: it is to depend on the engine's token budget, not on the pairs of a step.

python benchmarks/memory.py --steps 16,256
"""

from __future__ import annotations

from dataclasses import replace

from workbench.jobs import run_rounds
from workbench.options import make_job, make_parser, make_workload
from workbench.reports import publish
from workbench.tables import gigabytes, median_of, number, ratio, table
from workbench.workload import save_pairs

# Adam's moments come into being at the end of the first step: activations and moments meet in the second.
STEPS = 2


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--steps", default="16,256", help="pairs of a step, comma-separated")
    options = parser.parse_args(arguments)
    sizes = [int(text) for text in options.steps.split(",")]
    counts = [max(options.pairs, STEPS * size) for size in sizes]
    options.pairs = max(counts)
    workload = make_workload(options)
    job = make_job(options, workload, "ours")
    jobs = {}
    for size, count in zip(sizes, counts, strict=True):
        file = save_pairs(options.out / "memory" / f"pairs-{count}.json", workload.pairs[:count])
        jobs[f"ours, {size} pairs a step"] = replace(job, pairs_per_step=size, pairs_file=str(file))
    results = run_rounds(jobs, options.out / "memory", rounds=options.rounds, resume=options.resume)
    peaks = {name: median_of(runs, lambda r: r.peak_training_bytes) for name, runs in results.items()}
    first = next(iter(peaks.values()))
    rows = [
        [
            name,
            number(results[name][0].num_pairs, 0),
            gigabytes(peak),
            number(ratio(peak, first), 3, " ×"),
        ]
        for name, peak in peaks.items()
    ]
    header = ["trainer", "pairs", "peak while training, GB", "against the first"]
    publish(
        "memory",
        f"### Memory\n\n{table(header, rows)}\n\n{options.model}, at least {STEPS} steps each.",
        options.out,
        results=results,
        peak_training_bytes=peaks,
    )


if __name__ == "__main__":
    main()
