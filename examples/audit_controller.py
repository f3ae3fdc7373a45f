"""What a controller of beta does before it is trusted: on noise, on a jump, and on the margins of a run.

    python examples/audit_controller.py                  # on noise and on a jump
    python examples/audit_controller.py runs/quickstart  # and on what that run has logged

A controller that moves beta on margins without a signal will move it in your run whatever your data says. The
commands `dynamic-dpo simulate` and `dynamic-dpo replay` do the same with pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.lab import Scenario, replay, simulate

MODES = ["paper", "exact", "rm", "schedule"]


def main(arguments: Sequence[str]) -> None:
    """Print what each mode does."""
    print("ln beta per 1,000 updates on margins that carry no signal, 16 pairs an update")
    for row in simulate(MODES, n=[16], updates=400).rows:
        print(f"  {row.mode:<9} {row.drift_per_1000:+.2f}")

    print("the same margins, 2 nats higher from update 100 on")
    jump = Scenario("step", size=2.0, at=100)
    for row in simulate(MODES, n=[16], scenario=jump, updates=400).rows:
        print(f"  {row.mode:<9} {row.drift_per_1000:+.2f}")

    for run in arguments:
        print(f"on the margins of {run}: beta at the end")
        for found in replay(run, ["paper", "exact"]).traces:
            print(f"  {found.name:<24} {found.betas[-1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
