"""``dynamic-dpo strength``: models between a run's reference and its policy, scored on the run's held-out pairs."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import make_parser, run_command
from dynamic_dpo.errors import CheckpointError, ConfigError, DataError, ModelError
from dynamic_dpo.runs import files

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig
    from dynamic_dpo.eval.strength.curve import StrengthPoint

logger = logging.getLogger("dynamic_dpo")

DESCRIPTION = (
    "Score models between the reference of a run and its policy, θ_c = θ_ref + c (θ - θ_ref), on the run's held-out "
    "pairs, one pass each; write the curve, a page, and with --out the model of the chosen strength c."
)
GRID = "0,0.2,0.4,0.6,0.8,1,1.2,1.4,1.7,2"
# By what a strength is chosen, and what the page calls it.
CHOICES = {
    "loss": "the least held-out loss",
    "accuracy": "the greatest accuracy",
    "calibration_error": "the least calibration error",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    options = _parser().parse_args(list(argv))
    run, grid = Path(options.run), _grid(options.grid)
    at = _number(options.strength, "--strength") if options.strength is not None else None
    if at is not None:
        grid = sorted({*grid, at})
    out = Path(options.out) if options.out else None
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already and not empty: choose another folder")
    config, summary = _read(run)
    _check_has_reference(config)

    from tqdm.auto import tqdm

    from dynamic_dpo.cli.build_training import prepare_pairs
    from dynamic_dpo.engine.config import EngineConfig
    from dynamic_dpo.eval.strength.between import open_between
    from dynamic_dpo.eval.strength.curve import as_record, best_point, from_record, strength_curve
    from dynamic_dpo.eval.strength.page import strength_page
    from dynamic_dpo.models.adapters import find_model, pick_device
    from dynamic_dpo.models.sources import load_tokenizer
    from dynamic_dpo.models.trained_adapter import policy_fingerprint
    from dynamic_dpo.trainers.checkpoints.identity import data_fingerprint
    from dynamic_dpo.trainers.reference_pass import collate_pairs
    from dynamic_dpo.utils.files import write_json, write_text
    from dynamic_dpo.utils.json_lines import JsonLinesFile

    device = pick_device(options.device, setting="--device")
    folder = _policy_folder(run, config)
    policy = find_model(str(folder))
    try:
        reference = find_model(config.reference_name)
    except ModelError as error:
        raise ModelError(
            f"the reference of the run, {config.reference_name}, is not where it was: {error}"
        ) from error
    prints = summary.get("fingerprints") or {}
    now = {"policy": policy_fingerprint(policy), "reference": policy_fingerprint(reference)}
    if prints.get("reference") not in (None, now["reference"]):
        raise ModelError(
            f"the reference {config.reference_name} is not the one that the run had: its weights have changed since. "
            "Put them back, or train again"
        )
    prepared = prepare_pairs(config, load_tokenizer(policy.tokenizer), None)
    if prepared.validation is None:
        raise ConfigError(
            f"{run} has no held-out pairs to choose by: dataset.val_ratio is {config.dataset.val_ratio:g} and "
            "dataset.eval_dataset_name is null in its config.yaml"
        )
    now["held_out"] = data_fingerprint(prepared.validation)
    for name, found in (("train", data_fingerprint(prepared.train)), ("held_out", now["held_out"])):
        if prints.get(name) not in (None, found):
            raise DataError(
                f"the data of {run} has changed since it was trained ({name}): other pairs, another split or another "
                "tokenizer. Held-out pairs might now be ones that were trained on; put the data back"
            )
    if not prints:
        logger.warning("%s says nothing of its data and reference: whether they changed cannot be seen", run)
    pairs = collate_pairs(prepared.validation.to_list())["pairs"]
    beta = _beta(config, summary)
    key = hashlib.sha256(
        json.dumps([now, beta, options.precision, device.split(":")[0]], sort_keys=True).encode()
    ).hexdigest()

    between, tokenizer = open_between(policy, reference, device=device, dtype=options.precision)
    store = run / files.STRENGTH_POINTS
    with JsonLinesFile(store) as kept:
        known = {
            point.strength: point
            for record in kept.rows
            if record.get("key") == key
            for point in (from_record(record),)
        }
        passes = len({0.0, *(c for c in grid if c not in known)}) if set(grid) - known.keys() else 0
        with tqdm(total=passes * len(pairs), desc="Strengths", unit="pair", disable=None) as bar:
            points = strength_curve(
                between,
                pairs,
                grid,
                beta=beta,
                engine=config.read(EngineConfig),
                known=known,
                on_point=lambda point: kept.append({"key": key, **as_record(point)}),
                progress=bar.update,
            )
    if at is None:
        chosen, why = best_point(points, options.choose), CHOICES[options.choose]
    else:
        chosen, why = next(point for point in points if point.strength == at), "you"
    record = {
        "chosen": chosen.strength,
        "chosen_by": why,
        "beta": beta,
        "num_pairs": len(pairs),
        "passes": passes,
        "points": [as_record(point) for point in points],
        **now,
    }
    write_json(run / files.STRENGTH, record)
    text = strength_page(
        points,
        chosen,
        name=run.resolve().name,
        beta=beta,
        num_pairs=len(pairs),
        choose=why,
        details={
            "models": {"policy": str(folder), "reference": config.reference_name, **now},
            "scoring": {"precision": options.precision, "device": device, "beta": beta},
        },
    )
    page = write_text(options.page or run / files.STRENGTH_PAGE, text)
    _show(points, chosen)
    print(f"{page}: strength {chosen.strength:g}, by {why}")
    if out is not None:
        between.settle(chosen.strength)
        _write(between.model, tokenizer, out)
        print(f"{out}: the model at strength {chosen.strength:g}, read back and compared")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "dynamic-dpo strength", DESCRIPTION, example="dynamic-dpo strength runs/dpo --out runs/dpo-chosen"
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run that has ended: the save_dir of train-dpo"
    )
    parser.add_argument("--grid", metavar="C,C,…", default=GRID, help=f"strengths to score; default {GRID}")
    parser.add_argument("--choose", choices=tuple(CHOICES), default="loss", help="by what; default: loss")
    parser.add_argument("--strength", metavar="C", help="choose this one, whatever the pairs say")
    parser.add_argument(
        "--out", metavar="FOLDER", help="write the chosen model: a model folder, or an adapter"
    )
    parser.add_argument("--page", metavar="FILE", help=f"the page; default: RUN/{files.STRENGTH_PAGE}")
    parser.add_argument("--device", default="auto", help="cpu, cuda …; default: a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of all weights; default float32",
    )
    return parser


def _grid(text: str) -> list[float]:
    return sorted({_number(part, "--grid") for part in text.split(",")})


def _number(text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ConfigError(
            f"{option} takes finite numbers of at least 0, with commas between them, got {text!r}"
        )
    return value


def _read(run: Path) -> tuple[TrainingConfig, Mapping[str, Any]]:
    """Return the settings and the record of a run that has ended."""
    from dynamic_dpo.config import get_training_config, load_yaml

    if not (run / files.CONFIG).is_file():
        raise ConfigError(
            f"{run} holds no {files.CONFIG}: give the save_dir of a training by train-dpo, which leaves one"
        )
    config = get_training_config(load_yaml(str(run / files.CONFIG)))
    path = run / files.SUMMARY
    if not path.is_file():
        raise ConfigError(f"{run} has not come to its end ({files.SUMMARY} is missing): resume it first")
    summary = json.loads(path.read_text(encoding="utf-8"))
    return config, summary if isinstance(summary, dict) else {}


def _check_has_reference(config: TrainingConfig) -> None:
    from dynamic_dpo.methods.table import METHODS

    name = config.method.loss if METHODS[config.method.name].steers_beta else config.method.name
    if not any(METHODS[one].needs.reference for one in (name, *config.objective.added())):
        raise ConfigError(
            f"the run's method, {name}, has no reference: there is nothing to weaken the policy towards"
        )
    if config.reference_sync.steps is not None:
        raise ConfigError(
            "the reference of the run has followed its policy (reference_sync): there is no line between one "
            "reference and the policy"
        )


def _policy_folder(run: Path, config: TrainingConfig) -> Path:
    named = config.dpo_training.save_dpo_dir
    folder = Path(named).expanduser() if named else run
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no model of the run: let the run come to its end, or resume it"
        )
    return folder


def _beta(config: TrainingConfig, summary: Mapping[str, Any]) -> float:
    """Return the beta that goes with the run's weights: of the step that was kept, or of the last."""
    kept = summary.get("keep_best") or {}
    for beta in (kept.get("beta"), summary.get("beta_final"), config.beta_update.beta_0):
        if isinstance(beta, int | float) and beta > 0:
            return float(beta)
    raise ConfigError("the run's beta is not known: run_summary.json names none above 0")


def _show(points: Sequence[StrengthPoint], chosen: StrengthPoint) -> None:
    print("strength     loss  accuracy  calibration  KL/token")
    for point in points:
        mark = " *" if point is chosen else ""
        print(
            f"{point.strength:8g} {point.loss:8.4f} {point.accuracy:9.1%} {point.calibration_error:12.4f} "
            f"{point.kl:9.4g}{mark}"
        )


def _write(model: Any, tokenizer: Any, out: Path) -> None:
    """Write a model or an adapter as a folder: all of it, read back and compared, or nothing."""
    from dynamic_dpo.trainers.checkpoints.saved import check_saved_tokenizer, check_saved_weights
    from dynamic_dpo.utils.files import sync_tree, write_refused

    unfinished: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".unfinished"))
        made = unfinished / "made"
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        check_saved_weights(made, model)
        check_saved_tokenizer(made, tokenizer)
        sync_tree(made)
        made.replace(out)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors has errors of its own for a disk's refusal.
        if advice := write_refused(error):
            raise CheckpointError(f"{out} cannot be written: {error}; {advice}") from error
        raise
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
