"""From a run's checkpoint, or an adapter, to an ordinary model folder, on one process and without a GPU.

Weights are put together a layer at a time and written to files of bounded size, so that a model larger than the
machine's memory can be merged. Where a checkpoint is not sharded, its model is there already, and is copied.
"""

from __future__ import annotations

import filecmp
import itertools
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from dynamic_dpo.errors import CheckpointError, ConfigError, DynamicDPOError
from dynamic_dpo.models.adapters import ADAPTER_FILE, find_model, open_model
from dynamic_dpo.models.sources import SAFE_LOADING, load_config, load_tokenizer, model_class, resolve_model
from dynamic_dpo.runs.files import CONTROLLER_STATE, LOG_STATE, TRAINER_STATE
from dynamic_dpo.trainers.checkpoints.file_list import FILE_LIST, fault_of
from dynamic_dpo.trainers.checkpoints.saved import check_saved_tokenizer, check_saved_weights
from dynamic_dpo.trainers.checkpoints.shards import MODEL_SHARDS, ModelShards
from dynamic_dpo.trainers.checkpoints.weight_files import WeightFiles
from dynamic_dpo.utils.files import sync_tree, write_refused

_CONFIG = "config.json"
_TOKENIZER = "tokenizer_config.json"
_SETTINGS = (".json", ".jinja", ".model", ".txt")
_OF_THE_RUN = (TRAINER_STATE, CONTROLLER_STATE, FILE_LIST)


class Merged(NamedTuple):
    """What a merge has made.

    Attributes:
        kind: ``model`` or ``adapter``.
        was_sharded: Whether it was put together from shards; else it was copied.
        num_tensors: Weights in its files.
        num_bytes: Bytes of its files.
        num_files: Weight files.
    """

    kind: str
    was_sharded: bool
    num_tensors: int
    num_bytes: int
    num_files: int


def merge_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    model: str | None = None,
    into_base: bool = False,
    file_bytes: int = 5 * 10**9,
) -> Merged:
    """Make an ordinary model folder of a checkpoint; every value is read back and compared.

    Args:
        checkpoint: A run's ``checkpoint-N``, sharded or not; or the folder of an adapter, such as a run's own after
            its end, or one that TRL or peft has written.
        folder: Where to; must not exist, or be empty.
        model: The model that was trained, where the checkpoint does not hold its configuration and tokenizer.
        into_base: Whether an adapter is merged into its base model, in float32 and whole in memory.
        file_bytes: Size of a weight file, and with it of what is held in memory: about twice as much.

    Returns:
        What was made. All of it is there, or nothing.

    Raises:
        ConfigError: If the folder is taken, or there is nothing to merge into a base.
        CheckpointError: If the checkpoint is damaged or incomplete, or holds another model than it says.
        ModelError: If a base or tokenizer cannot be loaded.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if not checkpoint.is_dir():
        raise CheckpointError(f"no checkpoint at {checkpoint}: give the folder checkpoint-N of a run")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty: choose another folder, or move it away")
    is_adapter = _is_adapter(checkpoint)
    if is_adapter and not into_base:
        raise ConfigError(
            f"{checkpoint} is the folder of an adapter, which every command reads as it is: --into-base makes a "
            "model of it and its base"
        )
    if not is_adapter and (fault := fault_of(checkpoint)):
        raise CheckpointError(f"the checkpoint {checkpoint} cannot be merged: {fault}. Take another one")
    unfinished: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(
            tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".unfinished")
        )
        made = unfinished / "made"
        made.mkdir()
        merged = Merged("adapter", False, 0, 0, 0)
        if not is_adapter:
            merged = _merge(checkpoint, made, model, file_bytes)
        if into_base:
            whole = unfinished / "whole"
            merged = _merge_into_base(checkpoint if is_adapter else made, whole, merged, file_bytes)
            made = whole
        sync_tree(made)
        made.replace(folder)
    except DynamicDPOError:
        raise
    except Exception as error:
        # safetensors has errors of its own for it.
        if advice := write_refused(error):
            raise CheckpointError(f"{folder} cannot be written: {error}; {advice}") from error
        raise
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    return merged


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder is an adapter's and no checkpoint of ours, which is whole by its list of files."""
    ours = (FILE_LIST, CONTROLLER_STATE, LOG_STATE, MODEL_SHARDS)
    return (folder / ADAPTER_FILE).is_file() and not any((folder / name).exists() for name in ours)


def _merge(checkpoint: Path, folder: Path, model: str | None, file_bytes: int) -> Merged:
    for path in checkpoint.iterdir():
        if path.suffix in _SETTINGS and path.name not in _OF_THE_RUN and path.is_file():
            shutil.copyfile(path, folder / path.name)
    if not (checkpoint / MODEL_SHARDS).is_dir():
        return _copy(checkpoint, folder)
    shards = ModelShards(checkpoint)
    is_adapter = any(name.startswith("base_model.") for name in shards.names)
    if is_adapter:
        if not (folder / ADAPTER_FILE).is_file():
            raise CheckpointError(
                f"{checkpoint} has no {ADAPTER_FILE}, which earlier versions did not keep in checkpoints of shards: "
                "resume the run from it, and merge a checkpoint that it makes now"
            )
        files = WeightFiles(folder, "adapter_model", limit=None)
        files.add(shards.load(shards.names))
    else:
        _add_settings(checkpoint, folder, model)
        files = WeightFiles(folder, "model", limit=file_bytes)
        _write_model(shards, folder, files)
    count = len(files.finish())
    return Merged("adapter" if is_adapter else "model", True, files.num_tensors, files.num_bytes, count)


def _copy(checkpoint: Path, folder: Path) -> Merged:
    paths = sorted(checkpoint.glob("*.safetensors"))
    if not paths:
        found = ", ".join(sorted(path.name for path in checkpoint.iterdir()))
        raise CheckpointError(
            f"{checkpoint} holds no model, neither {MODEL_SHARDS} nor *.safetensors, but only {found}"
        )
    num_tensors = 0
    for path in paths:
        shutil.copyfile(path, folder / path.name)
        if not filecmp.cmp(path, folder / path.name, shallow=False):
            raise CheckpointError(f"{folder / path.name} does not hold what was written to it")
        with safe_open(path, framework="pt") as saved:
            num_tensors += len(saved.keys())
    kind = "adapter" if (folder / ADAPTER_FILE).is_file() else "model"
    return Merged(kind, False, num_tensors, sum(path.stat().st_size for path in paths), len(paths))


def _add_settings(checkpoint: Path, folder: Path, model: str | None) -> None:
    """Take from the model that was trained what the checkpoint does not hold of it."""
    missing = [name for name in (_CONFIG, _TOKENIZER) if not (folder / name).is_file()]
    if not missing:
        return
    if model is None:
        raise CheckpointError(
            f"{checkpoint} has no {' and no '.join(missing)}, which earlier versions did not keep in checkpoints of "
            "shards: name the model that was trained with --model"
        )
    source = resolve_model(model)
    if _CONFIG in missing:
        load_config(source).save_pretrained(folder)
    if _TOKENIZER in missing:
        load_tokenizer(source).save_pretrained(folder)


def _write_model(shards: ModelShards, folder: Path, files: WeightFiles) -> None:
    """Write all weights of a model, under the names and in the pieces of `save_pretrained`."""
    from transformers.core_model_loading import revert_weight_conversion

    config = load_config(resolve_model(str(folder)))
    with torch.device("meta"):
        model = model_class(str(folder)).from_config(config, **SAFE_LOADING)
    _check_same_tensors(shards, model)
    # The second name of a tied weight: `from_pretrained` ties it again.
    left_out = {
        target
        for target, source in model.all_tied_weights_keys.items()
        if torch.equal(*shards.load([target, source]).values())
    }
    for _, names in itertools.groupby(shards.names, key=_layer_of):
        weights = shards.load(name for name in names if name not in left_out)
        # Experts, for one, are one tensor a layer in memory and many in the files.
        files.add(revert_weight_conversion(model, weights) if weights else {})


def _check_same_tensors(shards: ModelShards, model: Any) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(shards.shape(name)) for name in shards.names}
    if found != expected:
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        name = wrong[0]
        raise CheckpointError(
            f"the shards in {shards.path} do not hold a {type(model).__name__} of this {_CONFIG}: {len(wrong)} "
            f"tensors differ, such as {name}, expected as {expected.get(name, 'none')}, found as "
            f"{found.get(name, 'none')}"
        )


def _layer_of(name: str) -> str:
    """Return what stands before a weight's own name: its layer, where it is in one.

    >>> _layer_of("model.layers.11.mlp.up_proj.weight"), _layer_of("lm_head.weight")
    ('model.layers.11', 'lm_head.weight')
    """
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else name


def _merge_into_base(adapter: Path, folder: Path, merged: Merged, file_bytes: int) -> Merged:
    if merged.kind != "adapter":
        raise ConfigError("--into-base is for adapters, and the checkpoint holds a whole model: leave it out")
    adapted, tokenizer = open_model(find_model(str(adapter)), device="cpu", dtype="float32")
    model = adapted.merge_and_unload()
    model.save_pretrained(folder, max_shard_size=file_bytes)
    tokenizer.save_pretrained(folder)
    num_tensors = check_saved_weights(folder, model)
    check_saved_tokenizer(folder, tokenizer)
    paths = list(folder.glob("*.safetensors"))
    return Merged(
        "model", merged.was_sharded, num_tensors, sum(path.stat().st_size for path in paths), len(paths)
    )
