"""The further benchmarks, one after the other: `make bench-more`.

    python benchmarks/more.py
    python benchmarks/more.py --model tiny --pairs 16 --pairs-per-step 4 --rows 2000      # minutes, to see it work
    python benchmarks/more.py --only saturation,memory

Each can be run alone, with more options, as the script of its name. One that fails is reported and does not stop
the others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.models import is_random
from workbench.options import make_parser
from workbench.reports import publish
from workbench.tables import gigabytes, number, ratio, table

# A tenth first: memory is to stay what it is when rows become ten times as many.
SHARE_OF_SMALL_SET = 10


def prepare_data(options: argparse.Namespace) -> None:
    """Measure data preparation at two sizes, each in a process of its own."""
    folder = options.out / "data_preparation"
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for rows in (options.rows // SHARE_OF_SMALL_SET, options.rows):
        path = folder / f"{rows}.json"
        if not (options.resume and path.is_file()):
            script = Path(__file__).with_name("data_preparation.py")
            print(f"{rows} rows ...", flush=True)
            subprocess.run(
                [sys.executable, str(script), "--rows", str(rows), "--json", str(path)], check=True
            )
        found.append(json.loads(path.read_text()))
    small, large = found
    rows_of_table = [
        [
            f"{one['rows']:,} rows",
            number(one["rows_per_second"], 0),
            gigabytes(one["peak_resident_bytes"]),
            gigabytes(one["peak_private_bytes"]),
        ]
        for one in found
    ]
    header = ["data preparation", "rows/s", "peak memory, GB", "of it private, GB"]
    growth = ratio(large["peak_resident_bytes"], small["peak_resident_bytes"])
    remark = f"{large['processes']} processes, HH-shaped rows. Ten times the rows take {number(growth)} × the memory."
    publish(
        "data_preparation",
        f"### Data preparation\n\n{table(header, rows_of_table)}\n\n{remark}",
        options.out,
        sizes=found,
    )


def run_script(name: str, options: argparse.Namespace, *extra: str, pairs: int | None = None) -> None:
    """Run the benchmark of another script with this command's options."""
    arguments = ["--out", str(options.out), "--model", options.model, "--data", options.data]
    arguments += ["--rounds", str(options.rounds), "--pairs", str(pairs or options.pairs)]
    arguments += ["--pairs-per-step", str(options.pairs_per_step), *extra]
    arguments += [word for text in options.engine for word in ("--engine", text)]
    importlib.import_module(name).main([*arguments, *(["--resume"] if options.resume else [])])


def growth(options: argparse.Namespace) -> None:
    """Measure how cost grows, on a small model unless the run itself is on a random one."""
    if not is_random(options.model):
        options = argparse.Namespace(**vars(options) | {"model": "small"})
    run_script("growth", options, pairs=min(options.pairs, 64))


def memory(options: argparse.Namespace) -> None:
    """Measure peak memory at one step's pairs and at sixteen times as many."""
    sizes = (options.pairs_per_step, 16 * options.pairs_per_step)
    run_script("memory", options, "--steps", ",".join(map(str, sizes)))


def sampling(options: argparse.Namespace) -> None:
    """Measure sampling, of the quickstart's model where the run itself is on a random one, which reads no text."""
    model = [] if is_random(options.model) else ["--model", options.model]
    importlib.import_module("sampling").main(
        [*model, "--out", str(options.out), "--rounds", str(options.rounds)]
    )


BENCHMARKS: dict[str, Callable[[argparse.Namespace], None]] = {
    "reference_pass": lambda options: run_script("reference_pass", options),
    "sweep": lambda options: run_script("sweep", options),
    "overhead": lambda options: run_script("overhead", options),
    "saturation": lambda options: run_script("saturation", options, "--with-trl"),
    "memory": memory,
    "growth": growth,
    "sampling": sampling,
    "data_preparation": prepare_data,
}


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--rows", type=int, default=161_000, help="rows of the data preparation")
    parser.add_argument("--only", help=f"comma-separated, from {', '.join(BENCHMARKS)}")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(BENCHMARKS)
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        raise SystemExit(f"--only {','.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        try:
            BENCHMARKS[name](options)
        except (Exception, SystemExit) as failure:
            print(f"{name} failed: {failure}", flush=True)
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
