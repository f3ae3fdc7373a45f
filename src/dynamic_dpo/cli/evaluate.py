"""``evaluate``: from an evaluation file to a report: prepare prompts, generate, judge, report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamic_dpo.cli.common import configured_parser, read_settings, run_command

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import EvaluationConfig

logger = logging.getLogger("dynamic_dpo")

DESCRIPTION = (
    "Compare models: generate with each, judge their outputs pairwise, report win rates. Resumes by itself."
)
STAGES = ("prepare", "generate", "judge", "report")
BUDGET_STOPPED = 3
"""Exit code where a limit of the judge's budget left questions without an answer; the report says so."""
EXAMPLE = "--config configs/evaluation.yaml dataset.max_samples=64 baseline=start"
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 a mistake in the settings or files,\n"
    f"{BUDGET_STOPPED} stopped at the judge's budget with a report of what there is, 129, 130 and 143 interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def run_evaluation(config: EvaluationConfig, stages: Sequence[str] = STAGES) -> int:
    """Run the stages of an evaluation, each doing what is missing.

    Args:
        config: Checked settings.
        stages: Which, in their order. Prompts that are there are drawn again only where ``prepare`` runs alone.

    Returns:
        0, or `BUDGET_STOPPED`.

    Raises:
        ConfigError: If settings cannot be carried out, or a stage runs before what it needs.
        DataError: If prompts or files cannot be used.
        ModelError: If a model cannot be used.
        JudgeError: If the judge cannot be had; what is answered stays answered.
    """
    from dynamic_dpo.cli.build_evaluation import build_plan, check_difficulties, check_judge
    from dynamic_dpo.eval.folder import EvaluationFolder
    from dynamic_dpo.eval.pipeline import generate_all, judge_all, prepare
    from dynamic_dpo.eval.report.stage import report
    from dynamic_dpo.eval.turns.stages import generate_turns, judge_turns, report_turns

    plan = build_plan(config)
    if "judge" in stages:
        check_judge(config)
    if "report" in stages:
        check_difficulties(config)
    folder = EvaluationFolder(plan)
    config.save(plan.folder / "config.yaml")
    stopped = None
    if "prepare" in stages:
        prompts = prepare(folder, again=len(stages) == 1)
        logger.info("%d prompts in %s", len(prompts), plan.folder)
    if "generate" in stages:
        (generate_turns if plan.turns.enabled else generate_all)(folder)
    if "judge" in stages:
        stopped = (judge_turns if plan.turns.enabled else judge_all)(folder)
    if "report" in stages:
        paths, stopped = (report_turns if plan.turns.enabled else report)(folder)
        print(Path(paths.markdown).read_text(encoding="utf-8"))
        logger.info("the report: %s", paths.html)
    return BUDGET_STOPPED if stopped else 0


def _command(argv: Sequence[str]) -> int:
    parser = configured_parser("evaluate", DESCRIPTION, example=f"evaluate {EXAMPLE}", notes=EXIT_CODES)
    parser.add_argument(
        "--stage",
        choices=STAGES,
        help="run one stage alone; default: all of them, each doing what is missing",
    )
    settings = read_settings(parser, argv, keys=keys)
    if settings is None:
        return 0
    stage = parser.parse_args(list(argv)).stage
    return evaluate(settings, [stage] if stage else STAGES)


def evaluate(settings: dict[str, object], stages: Sequence[str]) -> int:
    """Check settings and run stages; returns the exit code."""
    from dynamic_dpo.config import get_evaluation_config

    return run_evaluation(get_evaluation_config(settings), stages)


def keys() -> str:
    """Return the description of all keys, for ``--help-all``."""
    from dynamic_dpo.config.key_reference import render_help
    from dynamic_dpo.config.schema import EvaluationConfig

    return render_help(EvaluationConfig)


if __name__ == "__main__":
    sys.exit(main())
