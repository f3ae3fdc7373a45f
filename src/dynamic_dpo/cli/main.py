"""``dynamic-dpo COMMAND``: the umbrella over all commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from dynamic_dpo.utils.process_group import end_process

COMMANDS = {
    "train-dpo": ("train_dpo", "train a policy on preference pairs"),
    "train-sft": ("train_sft", "fine-tune a model on conversations"),
    "evaluate": ("evaluate", "generate with several models, judge, and report win rates"),
    "rollout": ("rollout", "sample responses, label them, and make pairs for train-dpo"),
    "iterate": ("iterate", "rounds of rollout, training and evaluation"),
    "sweep": ("sweep", "trainings that differ in a few settings, side by side"),
    "judge": ("judge", "judge the outputs of an evaluation: its stage judge alone"),
    "leaderboard": ("evaluations.leaderboard", "several evaluations as one table, also for LaTeX"),
    "export": ("evaluations.export", "outputs or verdicts in the files of AlpacaEval or Arena-Hard"),
    "inspect-data": ("inspect_data", "what is in the data of a training, before training on it"),
    "score": ("score", "rewards and margins of a trained policy for given pairs"),
    "strength": ("strength", "how strong a trained policy is to be: between it and its reference"),
    "merge": ("merge", "an ordinary model folder from the checkpoint of an interrupted run"),
    "report": ("report", "write a page and plots from a run's folder"),
    "memory": ("memory", "estimate the memory that each GPU needs, with the arithmetic"),
    "replay": ("lab.replay", "what other controllers would have done on a run's margins"),
    "simulate": ("lab.simulate", "what controllers of beta do on margins of a known law"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named command and return its exit code; 2 for an unknown one."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    name, *rest = arguments
    if name == "--version":
        from dynamic_dpo import __version__

        print(f"dynamic-dpo {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    module = import_module(f"dynamic_dpo.cli.{COMMANDS[name][0]}")
    status = int(module.main(rest))
    return end_process(status) if argv is None else status


def _usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {meaning}" for name, (_, meaning) in COMMANDS.items()]
    return "\n".join(
        ["usage: dynamic-dpo COMMAND ...", "", "commands:", *lines, "", "COMMAND --help says more."]
    )


if __name__ == "__main__":
    sys.exit(main())
