"""Runs the experiment, goes on where it was interrupted, and prints the tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.record import Record
from experiments.sentiment.comparison import quick_plan, results_of, run, whole_plan

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).resolve().parent / "results.jsonl"
FOLDER = ROOT / "runs" / "sentiment"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sentiment", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small version, to see it work")
    parser.add_argument("--out", type=Path, help="file of results to go on with; default: the published one")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"for pairs and runs; default {FOLDER}")
    parser.add_argument(
        "--train-nothing", action="store_true", help="show what there is, and what is missing"
    )
    options = parser.parse_args(arguments)

    from experiments.sentiment.page import after_training_table, compare, whole_table
    from tqdm import tqdm

    plan = quick_plan() if options.quick else whole_plan()
    folder = options.folder / "quick" if options.quick else options.folder
    record = Record(options.out or (folder / "results.jsonl" if options.quick else RECORD))
    if not options.train_nothing:
        total = len(plan.tuning()) + len(plan.starts()) + len(list(plan.cells(0.0)))
        with tqdm(total=total, unit="run", disable=None) as bar:

            def advance(name: str) -> None:
                bar.set_postfix_str(name)
                bar.update()

            run(plan, record, folder, advance)
    results = results_of(plan, record)
    found = compare(results)
    for condition, by_arm in results.lines.items():
        print(f"\n{condition}\n")
        print(whole_table(by_arm, {arm: one for (where, arm), one in found.items() if where == condition}))
    print(f"\nWhat held-out pairs decide\n\n{after_training_table(results)}")
    if results.missing:
        print(f"\nMissing, {len(results.missing)} in all: {'; '.join(results.missing[:8])} …")


if __name__ == "__main__":
    main()
