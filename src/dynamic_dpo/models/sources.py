"""Where a model comes from and how it is loaded: a hub name, a folder, a ``.gguf`` file or an installed package.

Also the fingerprint of its weights: of the files where there are some, else of the parameters themselves.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

from safetensors import SafetensorError

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.gguf import remove_copy, unpacked
from dynamic_dpo.models.read_once import is_read_once, load_once

PACKAGE_PREFIX = "package:"
# Given although it is the default: left out, transformers asks on the terminal whether to run a repository's code.
SAFE_LOADING = {"trust_remote_code": False}
# What the libraries raise on a file that is missing, damaged, malicious or of another model.
_NOT_LOADABLE = (
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RecursionError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
)
# In the checkpoint of a sharded run: the folder of its weights, as accelerate names it.
MODEL_SHARDS: Final = "pytorch_model_fsdp_0"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class ModelSource:
    """A resolved model name: what to pass to ``from_pretrained``.

    Attributes:
        name: What the user wrote.
        location: Hub name or folder.
        gguf_file: Name of the ``.gguf`` file in the folder, or ``None``.
    """

    name: str
    location: str
    gguf_file: str | None = None

    @property
    def load_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained`` beside the location."""
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}


def resolve_model(name: str) -> ModelSource:
    """Turn a model name into a source.

    Args:
        name: ``org/name`` on a hub, a folder, a ``.gguf`` file, or ``package:NAME`` for weights that an installed
            Python package carries.

    Returns:
        The source; whether a hub name exists is found out on loading.

    Raises:
        ModelError: If a file, folder or package is named that is not there or holds no single model.
    """
    if name.startswith(PACKAGE_PREFIX):
        package = name.removeprefix(PACKAGE_PREFIX)
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"model {name!r}: no installed package {package!r} with files of its own; "
                "install it (with pip, --no-deps if only its weights are wanted) or give a hub name or a path"
            )
        return _single_gguf(name, Path(spec.submodule_search_locations[0]))
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {name!r}: no such .gguf file")
        return ModelSource(name, str(path.parent), path.name)
    if path.is_dir():
        refuse_shards(path)
        if (path / "config.json").is_file():
            return ModelSource(name, str(path))
        return _single_gguf(name, path)
    if path.exists() or name.startswith((".", "/", "~")):
        raise ModelError(f"model {name!r}: expected a folder with config.json, a .gguf file or a hub name")
    return ModelSource(name, name)


def refuse_shards(folder: Path) -> None:
    """Raise `ModelError` if a folder is the checkpoint of a sharded run, whose weights are in pieces."""
    if (folder / MODEL_SHARDS).is_dir() and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} is a checkpoint of a sharded run: make a model of it with dynamic-dpo merge {folder} OUT"
        )


def _single_gguf(name: str, folder: Path) -> ModelSource:
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(files) or "none"
        raise ModelError(
            f"model {name!r}: expected config.json or exactly one .gguf file in {folder}, found {found}"
        )
    return ModelSource(name, str(folder), files[0])


def load_model(source: ModelSource, **kwargs: Any) -> Any:
    """Load a causal language model, in float32 unless ``dtype`` says otherwise; for text, one of pictures too.

    Weights stay in float32 under bf16 training too (autocast does the arithmetic): steps of 5e-7 are below
    bfloat16's resolution.

    Under FSDP one rank reads them for all, and the call is collective: see `dynamic_dpo.models.read_once`. Quantised
    weights cannot travel, and every rank reads them.

    Raises:
        ModelError: If it cannot be loaded, with the library's reason.
    """
    import torch

    def read(location: str, options: dict[str, Any], gguf: dict[str, Any]) -> Any:
        options = {"dtype": torch.float32, **SAFE_LOADING, "weights_only": True, **options}
        model = model_class(location, **gguf).from_pretrained(location, **gguf, **options)
        if gguf:
            # The weights are dequantised now; a saved copy that says otherwise could not be loaded again.
            del model.config.quantization_config
            model.is_quantized = False
            model.hf_quantizer = None
        return model

    def unpack(folder: Path) -> None:
        read(source.location, {}, source.load_kwargs).save_pretrained(folder)

    def load(**options: Any) -> Any:
        try:
            return _load(source, "model", unpack, lambda place, **gguf: read(place, kwargs | options, gguf))
        except _NOT_LOADABLE as error:
            raise ModelError(f"model {source.name!r} cannot be loaded: {_first_lines(error)}") from error

    model = load_once(load) if is_read_once() and "quantization_config" not in kwargs else load()
    if source.gguf_file:
        model.config._name_or_path = source.location
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        # The files may hold a head of its own although the configuration ties it, and sharding goes by that.
        model.config.tie_word_embeddings = False
    return model


def load_config(source: ModelSource) -> Any:
    """Load a model's configuration.

    Raises:
        ModelError: If there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.location, **source.load_kwargs, **SAFE_LOADING)
    except _NOT_LOADABLE as error:
        raise ModelError(
            f"the configuration of model {source.name!r} cannot be loaded: {_first_lines(error)}"
        ) from error


def model_class(location: str, **gguf: Any) -> Any:
    """Return the class that loads a model: that of causal language models, where it knows the family."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    if gguf:
        return AutoModelForCausalLM
    kind = type(AutoConfig.from_pretrained(location, **SAFE_LOADING))
    takes_pictures = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if takes_pictures else AutoModelForCausalLM


def load_tokenizer(source: ModelSource) -> Any:
    """Load the tokenizer that belongs to a model.

    Raises:
        ModelError: If there is none.
    """
    from transformers import AutoTokenizer

    def load(location: str, **gguf: Any) -> Any:
        return AutoTokenizer.from_pretrained(location, **gguf, **SAFE_LOADING)

    def unpack(folder: Path) -> None:
        load(source.location, **source.load_kwargs).save_pretrained(folder)

    try:
        return _load(source, "tokenizer", unpack, load)
    except _NOT_LOADABLE as error:
        raise ModelError(
            f"the tokenizer of model {source.name!r} cannot be loaded: {_first_lines(error)}"
        ) from error


def _load(source: ModelSource, part: str, unpack: Callable[[Path], None], load: Callable[..., Any]) -> Any:
    """Load a part of a source; that of a ``.gguf`` file from its ordinary copy, where there can be one."""
    file = Path(source.location, source.gguf_file or "")
    # Read from the .gguf file itself, a model without its weights still takes all the memory and time of one with.
    copy = unpacked(file, part, unpack, any_size=is_read_once()) if source.gguf_file else None
    if copy is None:
        return load(source.location, **source.load_kwargs)
    try:
        loaded = load(str(copy))
    except _NOT_LOADABLE:
        loaded = load(source.location, **source.load_kwargs)
        remove_copy(copy)  # Only now: what the caller asked for may have been the fault.
    loaded.name_or_path = source.location
    return loaded


def _first_lines(error: BaseException) -> str:
    return str(error).strip()[:1000] or type(error).__name__


def file_fingerprint(source: ModelSource) -> str:
    """Return a SHA-256 over the weight files and the configuration behind a source.

    Hub names are looked up in the local cache, where loading the model has put the files.

    Raises:
        ModelError: If no weight file is found.
    """
    folder = _folder_of(source)
    if source.gguf_file:
        files = [folder / source.gguf_file]
    else:
        files = sorted(
            p for p in folder.iterdir() if p.suffix in WEIGHT_SUFFIXES and p.name != "training_args.bin"
        )
        if not files:
            raise ModelError(f"model {source.name!r}: no weight files in {folder}")
        files.append(folder / "config.json")
    return _hash_files(files)


def is_same_model(one: ModelSource, other: ModelSource) -> bool:
    """Return whether two sources are the same files; a hub name that is not in the local cache is no other's."""
    if one == other:
        return True
    try:
        folders = _folder_of(one).resolve(), _folder_of(other).resolve()
    except ModelError:
        return False
    return folders[0] == folders[1] and one.gguf_file == other.gguf_file


def _folder_of(source: ModelSource) -> Path:
    folder = Path(source.location)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.location, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {source.name!r} is not in the local cache: {error}") from error


def _hash_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weights_fingerprint(model: Any) -> str:
    """Return a SHA-256 over names and values of a model's parameters, for models that come without files."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype}".encode())
        values = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
