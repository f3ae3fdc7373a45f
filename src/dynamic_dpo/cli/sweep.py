"""``dynamic-dpo sweep``: trainings that differ in a few settings, side by side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import answer_help, configured_parser, run_command
from dynamic_dpo.errors import ConfigError

if TYPE_CHECKING:
    from dynamic_dpo.sweeps.figures import Criterion
    from dynamic_dpo.sweeps.plan import SweepPlan
    from dynamic_dpo.sweeps.trainings import SweepResult

DESCRIPTION = (
    "Train with every combination of several values of settings, score the reference once, and compare the trainings "
    "on held-out pairs. A setting with commas takes each of its values: beta_update.beta_0=.03,.1,.3. Resumes by "
    "itself; values can be added later."
)
_SAID_BY_THE_SWEEP = ("save_dir", "save_dpo_dir", "resume", "push_to_hub", "hub_model_id")
_OF_THE_LOSS = ("method", "objective")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def sweep(plan: SweepPlan) -> SweepResult:
    """Run what is missing of a sweep.

    Raises:
        ConfigError: If a training that was begun has other settings.
        DataError: If what a training has left is not whole any more.
        StageError: If no training is left, or the evaluation fails.
    """
    from dynamic_dpo.sweeps.trainings import run_sweep

    return run_sweep(plan)


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    return _parser().parse_args(list(argv))


def _parser() -> argparse.ArgumentParser:
    parser = configured_parser(
        "dynamic-dpo sweep",
        DESCRIPTION,
        example="dynamic-dpo sweep --config configs/dpo.yaml --out runs/sweep beta_update.beta_0=.01,.03,.1",
        notes="exit codes: 0 done, 1 a training failed, 2 a mistake in settings or files, 129, 130, 143 stopped",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of everything the sweep leaves")
    parser.add_argument(
        "--list", metavar="FILE", help="YAML file with a list under `trainings` of settings that go together"
    )
    parser.add_argument(
        "--evaluation",
        metavar="FILE",
        help="settings of evaluate: all models against the model before training",
    )
    parser.add_argument(
        "--by", choices=("loss", "accuracy", "win_rate"), help="what the best is found by; see docs/sweeps.md"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="trainings at once; 1 by default")
    parser.add_argument("--devices", metavar="0,1", help="GPUs by number: one training at a time on each")
    return parser


def _keys() -> str:
    from dynamic_dpo.config.key_reference import render_help

    return render_help()


def _command(argv: Sequence[str]) -> int:
    arguments = arguments_of(argv)
    if answer_help(_parser(), arguments, keys=_keys):
        return 0
    result = sweep(build_plan(arguments))
    _print_table(result)
    print(result.page)
    return 1 if result.failed else 0


def build_plan(arguments: argparse.Namespace) -> SweepPlan:
    """Return what the command's arguments ask for; loads no model.

    Raises:
        ConfigError: If settings are missing, cannot be carried out together, or are the sweep's to say.
    """
    from dynamic_dpo.config import apply_overrides, get_training_config, load_yaml
    from dynamic_dpo.sweeps.grid import points_of, split_axes
    from dynamic_dpo.sweeps.plan import SweepPlan, Training

    if not arguments.config:
        raise ConfigError("dynamic-dpo sweep needs --config FILE; start from one in configs/")
    if not arguments.out:
        raise ConfigError("dynamic-dpo sweep needs --out DIR, the folder of everything that it leaves")
    axes, fixed = split_axes(arguments.overrides)
    base = apply_overrides(load_yaml(arguments.config), fixed)
    points = points_of(axes, _listed(arguments.list) if arguments.list else ())
    folder = Path(arguments.out).expanduser()
    trainings = []
    for point in points:
        given = apply_overrides(base, point.overrides)
        _refuse_what_the_sweep_says(given)
        section = given.get("dpo_training") or {}
        given["dpo_training"] = {**section, "save_dir": str(folder / "runs" / point.name), "resume": True}
        config = get_training_config(given)
        _check(config)
        trainings.append(Training(point.name, point.overrides, config.to_dict()))
    losses = {str([training.settings[name] for name in _OF_THE_LOSS]) for training in trainings}
    shares_loss = len(losses) == 1
    return SweepPlan(
        folder=folder,
        trainings=trainings,
        places=_places(arguments),
        criterion=_criterion(arguments, shares_loss),
        shares_loss=shares_loss,
        evaluation=_evaluation(arguments.evaluation, trainings, folder) if arguments.evaluation else None,
        prepare=_prepare,
        settled=_settled,
        command=" ".join(["train-dpo --config", arguments.config, *fixed]),
    )


def _prepare(command: str, path: Path, settings: Mapping[str, Any]) -> list[str]:
    from dynamic_dpo.config import dump_yaml
    from dynamic_dpo.utils.files import write_text
    from dynamic_dpo.utils.parallel.children import command_line

    return command_line(command, write_text(path, dump_yaml(settings)))


def _settled(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    from dynamic_dpo.config import get_training_config

    try:
        return get_training_config(dict(settings)).to_dict()
    except ConfigError:
        return settings


def _listed(path: str) -> list[dict[str, str]]:
    from dynamic_dpo.config import dump_yaml, load_yaml

    content = load_yaml(path)
    entries = content.get("trainings")
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(one, dict) and one for one in entries)
    ):
        raise ConfigError(
            f"{path}: expected `trainings:` with a list of settings, each a mapping such as "
            "{beta_update.beta_0: 0.1, dpo_training.learning_rate: 5e-7}"
        )

    def written(value: Any) -> str:
        return dump_yaml({"value": value}).partition(":")[2].strip()

    return [{str(key): written(value) for key, value in one.items()} for one in entries]


def _refuse_what_the_sweep_says(settings: Mapping[str, Any]) -> None:
    section = settings.get("dpo_training")
    said = section if isinstance(section, Mapping) else {}
    given = [name for name in _SAID_BY_THE_SWEEP if said.get(name)]
    given = [name for name in given if name != "save_dir" or said["save_dir"] != _default_folder()]
    if given:
        raise ConfigError(
            f"dpo_training.{given[0]} cannot be given: a sweep says that itself for every training, in folders below "
            "--out. Leave it out"
        )


def _default_folder() -> str:
    from dynamic_dpo.config.schema import TrainingConfig

    return str(TrainingConfig(policy_name="any").dpo_training.save_dir)


def _check(config: Any) -> None:
    data = config.dataset
    if not data.dataset_name and not data.mixture:
        raise ConfigError("dataset.dataset_name is required: a hub name, or a local file or folder of rows")
    if not data.val_ratio and not data.eval_dataset_name:
        raise ConfigError(
            "a sweep compares trainings on held-out pairs: set dataset.val_ratio above 0, or "
            "dataset.eval_dataset_name"
        )
    if config.dpo_training.eval_steps is None:
        raise ConfigError(
            "a sweep compares trainings on held-out pairs: set dpo_training.eval_steps (there is one evaluation at "
            "the end besides)"
        )
    for key in ("log_dir", "dpo_log_dir"):
        value = getattr(config.margin_log, key)
        if value is not None and value.startswith(("/", "~")):
            raise ConfigError(
                f"margin_log.{key} must be a folder within each training's own, got {value}: the trainings would "
                "write over each other"
            )


def _places(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Return what each training at once finds in its environment: its GPU, or its share of the cores."""
    if arguments.processes is not None and arguments.processes < 1:
        raise ConfigError(f"--processes must be at least 1, got {arguments.processes}")
    if arguments.devices:
        devices = [device.strip() for device in arguments.devices.split(",")]
        if not all(devices) or len({*devices}) < len(devices):
            raise ConfigError(
                f"--devices must be different GPUs with commas between, got {arguments.devices!r}"
            )
        if arguments.processes not in (None, len(devices)):
            raise ConfigError(
                f"--processes {arguments.processes} and {len(devices)} --devices do not go together: there is one "
                "training at a time on each GPU; leave --processes out"
            )
        return [{"CUDA_VISIBLE_DEVICES": device} for device in devices]
    number = arguments.processes or 1
    if number == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(number)]
    return [{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // number))} for _ in range(number)]


def _criterion(arguments: argparse.Namespace, shares_loss: bool) -> Criterion:
    if arguments.by == "win_rate" and not arguments.evaluation:
        raise ConfigError("--by win_rate needs --evaluation FILE, which says who judges")
    if arguments.by == "loss" and not shares_loss:
        raise ConfigError(
            "--by loss compares numbers of different kinds here: the trainings differ in method or objective. Take "
            "--by accuracy, or --by win_rate with --evaluation"
        )
    if arguments.by:
        chosen: Criterion = arguments.by
        return chosen
    if arguments.evaluation:
        return "win_rate"
    return "loss" if shares_loss else "accuracy"


def _evaluation(path: str, trainings: Sequence[Any], folder: Path) -> dict[str, Any]:
    from dynamic_dpo.cli.build_evaluation import build_plan, check_judge
    from dynamic_dpo.config import get_evaluation_config, get_training_config, load_yaml
    from dynamic_dpo.sweeps.plan import BASELINE

    settings = load_yaml(path)
    given = [name for name in ("models", "baseline", "comparisons", "output") if settings.get(name)]
    if given:
        raise ConfigError(
            f"{path}: {given[0]} cannot be given: a sweep compares all of its models with the one before training, "
            "in a folder below --out. Leave it out"
        )
    references = {get_training_config(dict(training.settings)).reference_name for training in trainings}
    if len(references) > 1:
        raise ConfigError(
            f"--evaluation needs one model before training, got {', '.join(sorted(references))}"
        )
    (reference,) = references
    settings |= {
        "models": {BASELINE: reference},
        "baseline": BASELINE,
        "comparisons": "baseline",
        "output": {"dir": str(folder / "evaluation")},
    }
    generation = settings.get("generation") or {}
    if generation.get("temperature") == 1 and generation.get("top_p") == 1 and not settings.get("scoring"):
        settings["scoring"] = {"reference": reference}
    # What is wrong with it is to be said before the first training has run for hours.
    models = {BASELINE: reference, **{training.name: reference for training in trainings}}
    config = get_evaluation_config({**settings, "models": models})
    build_plan(config)
    check_judge(config)
    return settings


def _print_table(result: SweepResult) -> None:
    width = max(len(figures.name) for figures in result.runs)
    print(
        f"{'':>3} {'training':<{width}}  {'loss':>8} {'accuracy':>9} {'drift':>8} {'win rate':>9} {'seconds':>8}"
    )
    for place, figures in enumerate(result.runs, start=1):
        drift = "–" if figures.drift is None else f"{figures.drift:.3g}"
        rate = "–" if figures.win_rate is None else f"{100 * figures.win_rate:.1f} %"
        print(
            f"{place:>3} {figures.name:<{width}}  {figures.loss:>8.4f} {100 * figures.accuracy:>7.1f} % {drift:>8} "
            f"{rate:>9} {figures.seconds:>8.1f}"
        )
    for name, what in result.failed.items():
        print(f"failed: {what}" if what.startswith(name) else f"failed: {name}: {what}")


if __name__ == "__main__":
    sys.exit(main())
