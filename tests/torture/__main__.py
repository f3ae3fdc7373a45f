"""Runs every torture at full counts, or at ``--share`` of them, and prints the table of docs/reliability.md.

Usage: ``PYTHONPATH=tests python -m torture [--share 0.1] [--only NAME ...]``.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from places import TESTS

# Some tortures are tests of a room, run at full counts.
sys.path += [str(TESTS / room) for room in ("data", "methods", "security")]


class Line(NamedTuple):
    """A row of the table."""

    what: str
    number: str
    wrong: list[str]


def _kill(count: int) -> Line:
    from torture.kill import kill_and_resume

    outcome = kill_and_resume(count)
    what = "SIGKILL at random moments, then resume: another end than uninterrupted"
    return Line(what, f"{outcome.kills} kills, {outcome.runs} runs", outcome.different)


def _term(count: int) -> Line:
    from torture.kill import kill_and_resume

    outcome = kill_and_resume(count, number=signal.SIGTERM, seed=1)
    what = "SIGTERM at random moments, then resume: another end than uninterrupted"
    return Line(what, f"{outcome.kills} signals, {outcome.runs} runs", outcome.different)


def _phases(count: int) -> Line:
    from torture.phases import PHASES, stop_in

    outcomes = [stop_in(phase, count) for phase in PHASES]
    wrong = [fault for outcome in outcomes for fault in outcome.wrong]
    number = ", ".join(
        f"{outcome.signals} in {phase}" for phase, outcome in zip(PHASES, outcomes, strict=True)
    )
    return Line(
        "SIGTERM in a phase of the command: lost work, wrong exit code, or another end", number, wrong
    )


def _evaluation(count: int) -> Line:
    from torture.evaluating import stop_evaluation

    outcomes = stop_evaluation(count)
    return Line(
        "SIGTERM while models write and while a judge is asked: an output written or a question asked twice, "
        "another report",
        ", ".join(f"{outcome.signals} in {phase}" for phase, outcome in outcomes.items()),
        [fault for outcome in outcomes.values() for fault in outcome.wrong],
    )


def _rollout(count: int) -> Line:
    from torture.rolling import kill_rollouts

    outcomes = [kill_rollouts(count, number=number) for number in (signal.SIGKILL, signal.SIGTERM)]
    kills, terms = outcomes
    return Line(
        "SIGKILL and SIGTERM in a rollout, all stages: another file, an answer written or a score asked for twice",
        f"{kills.kills} kills, {terms.kills} signals, {kills.runs + terms.runs} rollouts",
        [fault for outcome in outcomes for fault in outcome.different],
    )


def _iterate(count: int) -> Line:
    from torture.rolling import kill_loops

    outcomes = [kill_loops(count, number=number) for number in (signal.SIGKILL, signal.SIGTERM)]
    kills, terms = outcomes
    return Line(
        "SIGKILL and SIGTERM in a loop of two rounds, all stages: another pair, output or weight, an output written "
        "or a score asked for twice",
        f"{kills.kills} kills, {terms.kills} signals, {kills.runs + terms.runs} loops",
        [fault for outcome in outcomes for fault in outcome.different],
    )


def _strike(kind: str) -> Callable[[int], Line]:
    what = {
        "kill": "process killed",
        "full": "disk full from",
        "cut": "power cut (unsynced half lost)",
    }[kind]

    def strike(count: int) -> Line:
        from torture.boundaries import strike

        outcome = strike(kind, sample=count)  # type: ignore[arg-type]
        return Line(
            f"{what} at a place of disk access: lost or damaged state",
            f"{outcome.struck} places",
            outcome.wrong,
        )

    return strike


def _checkpoints(count: int) -> Line:
    from torture.checkpoint_damage import damage_checkpoints

    outcome = damage_checkpoints(count)
    wrong = [f"{outcome.believed} of {outcome.made}"] if outcome.believed else []
    return Line("damage to a checkpoint (cut, flip, delete, swap): loaded", str(outcome.made), wrong)


def _store(count: int) -> Line:
    from torture.store import damage_store

    outcome = damage_store(count)
    wrong = [f"{outcome.believed} of {outcome.made}"] if outcome.believed else []
    return Line("damage to the reference store: a wrong value read", str(outcome.made), wrong)


def _share(count: int) -> Line:
    from torture.store import share

    share(8, count)  # Fails on the first wrong value.
    return Line(
        "processes on one store, shards damaged under them: a wrong value read", f"8 × {count} rounds", []
    )


def _ddp(count: int) -> Line:
    from torture.ranks import long_run

    first, second = long_run(count)
    return Line(
        "two ranks, DDP: different ends",
        f"{count} steps",
        [part for part in first if first[part] != second[part]],
    )


def _sharded(count: int) -> Line:
    from torture.ranks import sharded_steps

    first, second = sharded_steps(count)
    return Line(
        "two ranks, fully_shard: different states", f"{count} steps", [] if first == second else ["state"]
    )


def _dead_rank(count: int) -> Line:
    from torture.ranks import REFUSED, kill_one

    ends = [kill_one(4.0 + 0.2 * number) for number in range(count)]
    wrong = [
        f"exit {code} after {seconds:.1f} s" for code, seconds, _ in ends if code != REFUSED or seconds > 60
    ]
    slowest = max(seconds for _, seconds, _ in ends)
    return Line(
        "one of two ranks killed: no clear error within 60 s", f"{count}, slowest {slowest:.1f} s", wrong
    )


def _one_signal(count: int) -> Line:
    from torture.ranks import stop_one

    wrong = [fault for number in range(count) for fault in stop_one(1.0 + 0.3 * number)]
    return Line("SIGTERM to one of two ranks, then resume: another end", str(count), wrong)


def _margins(count: int) -> Line:
    from torture.inputs import foul_margins

    controllers, wrong = foul_margins(count)
    return Line(
        "random margin batches (ties, NaN, infinities, none): beta out of bounds, a state that JSON changes",
        f"{count:,} through each of {controllers} controllers",
        wrong,
    )


def _rows(count: int) -> Line:
    from test_data_fuzz import MAKERS

    from torture.inputs import run_tests

    # The two sizes that the tests know.
    full = count >= 10_000
    passed, wrong = run_tests("tests/data/test_data_fuzz.py", "-m", "slow" if full else "not slow")
    number = f"{10_000 if full else 1500:,} rows of {len(MAKERS)} kinds, {passed} tests"
    return Line(
        "fuzzed rows through every reader: a crash, or a row neither kept nor quarantined", number, wrong
    )


def _hostile(count: int) -> Line:
    from test_security_checkpoints import OTHERS, PICKLES
    from test_security_names import DOCUMENTS, NAMES

    from torture.inputs import run_tests

    passed, wrong = run_tests(
        *(f"tests/security/test_security_{part}.py" for part in ("secrets", "names", "checkpoints"))
    )
    number = (
        f"50 secrets, {len(set(NAMES))} names, {len(set(DOCUMENTS))} YAML files, {len(PICKLES) + len(OTHERS)} "
        f"checkpoint files, {passed} tests"
    )
    return Line("planted secrets and hostile names and files: a leak, an escape, code run", number, wrong)


TORTURES: dict[str, tuple[Callable[[int], Line], int]] = {
    "kill": (_kill, 200),
    "term": (_term, 60),
    "phases": (_phases, 20),
    "evaluation": (_evaluation, 20),
    "rollout": (_rollout, 60),
    "iterate": (_iterate, 60),
    "places-kill": (_strike("kill"), 10_000),
    "places-full": (_strike("full"), 10_000),
    "places-cut": (_strike("cut"), 10_000),
    "checkpoints": (_checkpoints, 1000),
    "store": (_store, 1000),
    "share": (_share, 200),
    "ddp": (_ddp, 300),
    "sharded": (_sharded, 50),
    "dead-rank": (_dead_rank, 5),
    "one-signal": (_one_signal, 5),
    "margins": (_margins, 100_000),
    "rows": (_rows, 10_000),
    "hostile": (_hostile, 1),
}


def main() -> int:
    """Run them; return 1 if any found something."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of the full counts, e.g. 0.1")
    parser.add_argument("--only", nargs="+", choices=list(TORTURES), default=list(TORTURES))
    options = parser.parse_args()
    logging.getLogger("dynamic_dpo").setLevel(logging.CRITICAL)
    failed = False
    print("| what | how often | found | seconds |\n|---|---|---|---|", flush=True)
    for name in options.only:
        torture, count = TORTURES[name]
        start = time.monotonic()
        line = torture(max(1, round(count * options.share)))
        failed |= bool(line.wrong)
        print(
            f"| {line.what} | {line.number} | {len(line.wrong)} | {time.monotonic() - start:.0f} |",
            *line.wrong[:10],
            sep="\n    ",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
