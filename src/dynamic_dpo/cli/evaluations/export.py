"""``dynamic-dpo export``: an evaluation's outputs or verdicts in a file of AlpacaEval, Arena-Hard or MT-Bench."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamic_dpo.cli import evaluate
from dynamic_dpo.cli.common import configured_parser, read_settings, run_command
from dynamic_dpo.errors import ConfigError

if TYPE_CHECKING:
    from dynamic_dpo.eval.folder import EvaluationFolder
    from dynamic_dpo.eval.plan import EvaluationPlan
    from dynamic_dpo.eval.records import PromptRecord

DESCRIPTION = (
    "Write a model's outputs, the verdicts on it against another, or the grades of all models, in AlpacaEval's, "
    "Arena-Hard's or MT-Bench's files."
)
GRADES = "mt-bench"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = configured_parser(
        "dynamic-dpo export",
        DESCRIPTION,
        example="dynamic-dpo export --config configs/evaluation.yaml --to alpaca-annotations",
    )
    parser.add_argument(
        "--to",
        choices=[*FORMATS, GRADES],
        help="alpaca-outputs: model_outputs.json; alpaca-annotations: verdicts for AlpacaEval; arena-hard: two games "
        "a question, JSON lines; mt-bench: a grade a line",
    )
    parser.add_argument("--out", metavar="FILE", help="file to write; must not exist")
    parser.add_argument(
        "--model", metavar="NAME", help="whose; may be left out where there is one beside the baseline"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="other model of the verdicts; default: the baseline"
    )
    settings = read_settings(parser, argv, keys=evaluate.keys)
    if settings is None:
        return 0
    arguments = parser.parse_args(list(argv))
    for option in ("to", "out"):
        if getattr(arguments, option) is None:
            raise ConfigError(f"{parser.prog} needs --{option}; --help says more")
    # A file beside an evaluation may have been edited by hand, or be another model's.
    if Path(arguments.out).exists():
        raise ConfigError(f"{arguments.out} is there already: choose another --out, or move it away")
    from dynamic_dpo.cli.build_evaluation import build_plan
    from dynamic_dpo.config import get_evaluation_config

    if arguments.against and arguments.to == "alpaca-outputs":
        raise ConfigError("--against has no effect on outputs, which are one model's: leave it out")
    plan = build_plan(get_evaluation_config(settings))
    if plan.turns.enabled or arguments.to == GRADES:
        return _export_grades(plan, arguments)
    against = _model(plan, "--against", arguments.against or plan.baseline_name)
    model = _model(plan, "--model", arguments.model or _only_other(plan, against))
    if model == against and arguments.to != "alpaca-outputs":
        raise ConfigError(
            f"--model and --against are both {model!r}: verdicts are between two models, name another"
        )
    from dynamic_dpo.eval.folder import EvaluationFolder

    print(FORMATS[arguments.to](EvaluationFolder(plan), Path(arguments.out), model, against))
    return 0


def _export_grades(plan: EvaluationPlan, arguments: Namespace) -> int:
    if not plan.grades or arguments.to != GRADES:
        raise ConfigError(
            f"--to {arguments.to} does not fit: of conversations (turns.enabled) only the grades can be exported, "
            f"with --to {GRADES}, and only theirs"
        )
    if arguments.model or arguments.against:
        raise ConfigError(f"--model and --against have no effect on --to {GRADES}, which holds all models")
    from dynamic_dpo.eval.exchange import export_mt_bench_grades
    from dynamic_dpo.eval.folder import EvaluationFolder
    from dynamic_dpo.eval.turns.stages import collect_grades

    folder = EvaluationFolder(plan)
    print(export_mt_bench_grades(arguments.out, folder.prompts(), collect_grades(folder)))
    return 0


def _model(plan: EvaluationPlan, option: str, name: str) -> str:
    names = [model.name for model in plan.models]
    if name not in names:
        raise ConfigError(f"{option} must be one of models ({', '.join(names)}), got {name!r}")
    return name


def _only_other(plan: EvaluationPlan, against: str) -> str:
    others = [model.name for model in plan.models if model.name != against]
    if len(others) > 1:
        raise ConfigError(f"name the model with --model: one of {', '.join(others)}")
    return others[0]


def _alpaca_outputs(folder: EvaluationFolder, path: Path, model: str, against: str) -> Path:
    from dynamic_dpo.eval.exchange import export_alpaca_outputs

    prompts = folder.prompts()
    outputs = folder.outputs(prompts)[model].outputs
    return export_alpaca_outputs(path, _in_order(prompts, _places(folder)), outputs, model)


def _alpaca_annotations(folder: EvaluationFolder, path: Path, model: str, against: str) -> Path:
    from dynamic_dpo.eval.collected import collect
    from dynamic_dpo.eval.exchange import export_alpaca_annotations

    done, places = collect(folder), _places(folder)
    return export_alpaca_annotations(
        path,
        _in_order(done.prompts, places),
        done.outputs,
        done.records,
        model=model,
        baseline=against,
        judge=done.judge,
        places=places,
    )


def _places(folder: EvaluationFolder) -> dict[str, int]:
    """Return the place in the set of every prompt: AlpacaEval finds the difficulty of an instruction by it."""
    from dynamic_dpo.eval.prompts.sets import ids_in_order

    places: dict[str, int] = {}
    for place, prompt in enumerate(ids_in_order(**folder.plan.prompts)):
        places.setdefault(prompt, place)
    return places


def _in_order(prompts: Sequence[PromptRecord], places: Mapping[str, int]) -> list[PromptRecord]:
    """Return prompts in the order of their set; they were drawn in an order of their own."""
    return sorted(prompts, key=lambda prompt: places.get(prompt.id, len(places)))


def _arena_hard(folder: EvaluationFolder, path: Path, model: str, against: str) -> Path:
    from dynamic_dpo.eval.collected import collect
    from dynamic_dpo.eval.exchange import export_arena_hard_judgements

    done = collect(folder)
    return export_arena_hard_judgements(
        path, done.prompts, done.records, model=model, baseline=against, judge=done.judge
    )


FORMATS: dict[str, Callable[[EvaluationFolder, Path, str, str], Path]] = {
    "alpaca-outputs": _alpaca_outputs,
    "alpaca-annotations": _alpaca_annotations,
    "arena-hard": _arena_hard,
}


if __name__ == "__main__":
    sys.exit(main())
