"""``dynamic-dpo leaderboard``: several evaluations as one table, for people and for papers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.cli.common import make_parser, run_command

DESCRIPTION = (
    "Lay out the numbers of several evaluations as one table: a line for each model, a column for each number. "
    "Writes leaderboard.html, .md, .tex (a tabular for booktabs) and .csv, and prints the table."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = make_parser(
        "dynamic-dpo leaderboard",
        DESCRIPTION,
        example="dynamic-dpo leaderboard runs/evaluation-a runs/evaluation-b --out runs/leaderboard",
    )
    parser.add_argument(
        "evaluations",
        nargs="+",
        metavar="EVALUATION",
        help="output.dir of an evaluation, or the file of its numbers",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="runs/leaderboard", help="folder of the files; default: %(default)s"
    )
    parser.add_argument("--judge", metavar="NAME", help="leave out what others have judged")
    parser.add_argument(
        "--by",
        metavar="METRIC",
        help="number that models are ranked by, as in leaderboard.csv; default: the first",
    )
    arguments = parser.parse_args(list(argv))
    from dynamic_dpo.eval.leaderboard.board import make_board
    from dynamic_dpo.eval.leaderboard.files import markdown, write_leaderboard
    from dynamic_dpo.eval.leaderboard.results import read_results

    results = [result for place in arguments.evaluations for result in read_results(place)]
    board = make_board(results, judge=arguments.judge, by=arguments.by)
    paths = write_leaderboard(arguments.out, board, results)
    print(markdown(board))
    print(paths.html)
    return 0


if __name__ == "__main__":
    sys.exit(main())
