"""``dynamic-dpo simulate``: what controllers of beta do on margins of a known law."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.cli.common import make_parser, run_command
from dynamic_dpo.cli.lab.arguments import add_result_files, comma_list, write_result

DESCRIPTION = (
    "Run controllers of beta on simulated margins: drift on noise, response to a step or ramp, alarms of the "
    "monitor. Margins do not answer to beta."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    from dynamic_dpo.lab.results import LAB_MODES

    parser = make_parser(
        "dynamic-dpo simulate", DESCRIPTION, example="dynamic-dpo simulate --mode paper,exact --n 8,64"
    )
    parser.add_argument("--mode", default="paper,exact", help=f"comma list of {', '.join(LAB_MODES)}")
    parser.add_argument("--n", default="16", help="comma list of margins in a controller batch")
    parser.add_argument(
        "--law",
        default="normal",
        help="normal, lognormal, laplace, uniform, t<degrees of freedom>, or the folder of a run: its margins",
    )
    parser.add_argument("--change", default="none", help="none, step or ramp (--size per 1,000 updates)")
    parser.add_argument("--of", default="mean", help="what changes: mean (nats) or scale (ln of a factor)")
    parser.add_argument("--size", type=float, default=0.0, help="how much it changes")
    parser.add_argument("--at", type=int, default=0, help="update after the warm-up at which it begins")
    parser.add_argument("--updates", type=int, default=1000, help="updates after the warm-up")
    parser.add_argument("--chains", type=int, help="independent runs; default: what takes a few seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--bounded", action="store_true", help="let the bounds of beta hold")
    add_result_files(parser)
    arguments = parser.parse_args(list(argv))
    from dynamic_dpo.config import apply_overrides
    from dynamic_dpo.lab.pictures import draw_simulation
    from dynamic_dpo.lab.replaying import with_settings
    from dynamic_dpo.lab.scenario import Scenario
    from dynamic_dpo.lab.simulation import simulate
    from dynamic_dpo.lab.tables import simulation_table
    from dynamic_dpo.methods.risk.config import RiskConfig
    from dynamic_dpo.utils.settings import file_defaults

    result = simulate(
        comma_list(arguments.mode),
        config=with_settings(file_defaults(RiskConfig), apply_overrides({}, arguments.settings)),
        n=comma_list(arguments.n, int),
        law=arguments.law,
        scenario=Scenario(arguments.change, arguments.of, arguments.size, arguments.at),
        updates=arguments.updates,
        chains=arguments.chains,
        seed=arguments.seed,
        bounded=arguments.bounded,
    )
    print(simulation_table(result))
    write_result(arguments, result.to_dict(), lambda path: draw_simulation(result, path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
