"""A model's files, those of its adapter included: found, identified by a fingerprint, opened, and freed again.

Hub names become folders first, an adapter is found with its base model, and the fingerprint covers every file that
a text depends on.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.models.sources import (
    ModelSource,
    file_fingerprint,
    load_model,
    load_tokenizer,
    refuse_shards,
    resolve_model,
)

ADAPTER_FILE = "adapter_config.json"
# Beside the weights, a text depends on the tokenizer, its template and the stop tokens.
_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_NOT_FOR_TORCH = ["*.onnx*", "*.h5", "*.msgpack", "*.tflite", "*.ot", "original/*", "*.pth"]


class ModelFiles(NamedTuple):
    """Where a model's files are.

    Attributes:
        base: The model, or the base of the adapter.
        adapter: Folder of the adapter, if it is one.
        tokenizer: Where the tokenizer is.
    """

    base: ModelSource
    adapter: Path | None
    tokenizer: ModelSource


def find_model(name: str, *, revision: str | None = None, setting: str = "revision") -> ModelFiles:
    """Find the files of a model, fetching those of a hub name that are not in the cache.

    Args:
        name: Hub name, folder, ``.gguf`` file, ``package:NAME``, or the folder of a LoRA adapter.
        revision: Branch, tag or commit on the hub.
        setting: What the user calls the revision, for messages.

    Raises:
        ModelError: If there is no such model, or an adapter names no base.
        ConfigError: If a revision is given for a local model, where it would have no effect.
    """
    if (found := find_adapter(name)) is not None:
        _refuse_revision(name, revision, setting)
        return found
    source = resolve_model(name)
    if Path(source.location).is_dir():
        _refuse_revision(name, revision, setting)
        return ModelFiles(source, None, source)
    folder = _fetch(name, revision)
    if (folder / ADAPTER_FILE).is_file():
        return _with_adapter(folder)
    source = ModelSource(name, str(folder))
    return ModelFiles(source, None, source)


def find_adapter(name: str) -> ModelFiles | None:
    """Find the files of an adapter and its base; ``None`` if ``name`` is no local folder of an adapter.

    Raises:
        ModelError: If the adapter names no base, or the base cannot be found.
    """
    folder = Path(name).expanduser()
    if not (folder / ADAPTER_FILE).is_file():
        return None
    refuse_shards(folder)
    return _with_adapter(folder)


def adapter_sizes(folder: Path) -> list[tuple[int, ...]]:
    """Return the sizes of an adapter's weights, of which none is loaded.

    Raises:
        ModelError: If it has no file of them in the format safetensors, or that is damaged.
    """
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as saved:
            return [tuple(saved.get_slice(name).get_shape()) for name in saved.keys()]  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(f"the adapter's weights in {path} cannot be read: {error}") from error


def text_fingerprint(files: ModelFiles) -> str:
    """Return a SHA-256 over everything in a model's files that its texts depend on: 64 hexadecimal digits.

    Raises:
        ModelError: If weight files are missing.
    """
    digest = hashlib.sha256(file_fingerprint(files.base).encode())
    paths = []
    if files.adapter is not None:
        paths += [*sorted(files.adapter.glob("adapter_model.*")), files.adapter / ADAPTER_FILE]
    for folder in dict.fromkeys((files.tokenizer.location, files.base.location)):
        paths += [Path(folder) / name for name in _TEXT_FILES]
    for path in paths:
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def open_model(files: ModelFiles, *, device: str, dtype: str) -> tuple[Any, Any]:
    """Load model and tokenizer.

    Args:
        files: From `find_model`.
        device: A torch device.
        dtype: Name of a torch type, as in ``float32``.

    Returns:
        The model on its device, adapters unmerged as they were trained, and the tokenizer.

    Raises:
        ModelError: If either cannot be loaded.
    """
    import torch

    model = load_model(files.base, dtype=getattr(torch, dtype))
    if files.adapter is not None:
        try:
            from peft import PeftModel
        except ModuleNotFoundError:
            raise ModelError(
                f"{files.adapter} is an adapter, which needs peft: pip install 'dynamic-dpo[peft]'"
            ) from None
        with fitting(files):
            model = PeftModel.from_pretrained(model, str(files.adapter))
    return model.to(device).eval(), load_tokenizer(files.tokenizer)


@contextmanager
def fitting(files: ModelFiles) -> Iterator[None]:
    """Raise `ModelError` for what peft raises where an adapter is damaged, or another model's."""
    try:
        yield
    # A missing or damaged file, other names or sizes, a setting that peft does not know.
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
        raise ModelError(f"the adapter {files.adapter} does not fit {files.base.name}: {error}") from error


def free_unused_models() -> None:
    """Free the memory of models that no name refers to any more, before the next one is loaded.

    Adapters refer to their base, and lean layers to themselves, in circles that only the garbage collector finds.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(name: str, *, setting: str = "device") -> str:
    """Return the torch device that a setting means.

    Args:
        name: ``auto`` for a GPU where there is one, else the device itself.
        setting: What the user calls the setting, for messages.

    Raises:
        ConfigError: If it is unknown or not there.

    Example:
        >>> pick_device("cpu")
        'cpu'
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ConfigError(f"{setting} must be auto, cpu, cuda or cuda:0 …, got {name!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{setting} is {name}, and no CUDA device is visible; use cpu or auto")
    return name


def _with_adapter(folder: Path) -> ModelFiles:
    try:
        settings = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
        base = settings["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise KeyError("base_model_name_or_path")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / ADAPTER_FILE} names no base model ({error}): write it in there"
        ) from None
    found = find_model(base)
    if found.adapter is not None:
        raise ModelError(
            f"the base of the adapter {folder} is itself an adapter ({base}): merge that one first"
        )
    if settings.get("revision") and not Path(base).is_dir():
        found = find_model(base, revision=settings["revision"])
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return ModelFiles(
        found.base, folder, ModelSource(str(folder), str(folder)) if has_tokenizer else found.base
    )


def _refuse_revision(name: str, revision: str | None, setting: str) -> None:
    if revision is not None:
        raise ConfigError(f"{setting} is {revision!r}, but {name} is local and has no revisions: remove it")


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, ignore_patterns=_NOT_FOR_TORCH))
    # Not found, no permission, offline, a malformed name: a dozen types, all about what the user asked for.
    except Exception as error:
        raise ModelError(
            f"model {name!r} (revision {revision or 'main'}) is no local folder and could not be fetched: {error}"
        ) from error
