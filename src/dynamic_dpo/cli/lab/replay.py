"""``dynamic-dpo replay``: what other controllers would have done on a run's saved margins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import make_parser, run_command
from dynamic_dpo.cli.lab.arguments import add_result_files, comma_list, write_result
from dynamic_dpo.runs.files import CONFIG

if TYPE_CHECKING:
    from dynamic_dpo.methods.risk.config import RiskConfig

DESCRIPTION = (
    "Feed the margins that a run has saved to other controllers or settings, and compare betas. Another beta would "
    "have led to other margins: what is shown is a controller's reading of these."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    from dynamic_dpo.lab.results import LAB_MODES

    parser = make_parser(
        "dynamic-dpo replay", DESCRIPTION, example="dynamic-dpo replay runs/dpo --mode paper,exact"
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run: the save_dir of train-dpo")
    parser.add_argument(
        "--mode",
        help=f"comma list of {', '.join(LAB_MODES)}; default: the run's own with --set, else all but target",
    )
    add_result_files(parser)
    arguments = parser.parse_args(list(argv))
    from dynamic_dpo.config import apply_overrides
    from dynamic_dpo.lab.pictures import draw_replay
    from dynamic_dpo.lab.replaying import replay
    from dynamic_dpo.lab.tables import replay_table

    own, record = _configured(Path(arguments.run))
    result = replay(
        arguments.run,
        comma_list(arguments.mode) if arguments.mode else (),
        settings=apply_overrides({}, arguments.settings),
        own=own,
        record=record,
    )
    print(replay_table(result))
    write_result(arguments, result.to_dict(), lambda path: draw_replay(result, path))
    return 0


def _configured(run: Path) -> tuple[RiskConfig | None, dict[str, Any] | None]:
    """Return controller and method as the run's configuration has them; ``None`` where it left none."""
    path = run / CONFIG
    if not path.is_file():
        return None, None
    from dynamic_dpo.cli.build_training import build_method
    from dynamic_dpo.config import get_training_config, load_yaml
    from dynamic_dpo.lab.margins import read_margins
    from dynamic_dpo.methods.risk.config import RiskConfig

    config = get_training_config(load_yaml(path))
    section = config.dpo_training
    # How many devices there were, the largest batch tells.
    on_one = section.batch_size * (section.gradient_accumulation if config.method.scope == "step" else 1)
    ranks = max(1, max(len(batch) for batch in read_margins(run)) // on_one)
    args = SimpleNamespace(
        per_device_train_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        world_size=ranks,
    )
    own = config.read(RiskConfig).scaled_to(on_one * ranks, section.batch_size)
    return own, build_method(config, args).summary()


if __name__ == "__main__":
    sys.exit(main())
