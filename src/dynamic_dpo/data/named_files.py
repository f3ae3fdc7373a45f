"""One file by its name: a path here, a file on the hub, or a file that an installed package carries."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Final

from dynamic_dpo.errors import DataError

HUB_PREFIX: Final = "hf://"
PACKAGE_PREFIX: Final = "package:"

_ON_THE_HUB: Final = re.compile(r"hf://(datasets/|)([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def local_file(name: str) -> Path:
    """Return where a named file lies, after fetching it from the hub if it is there.

    Args:
        name: A path; ``hf://datasets/OWNER/NAME/FILE``, or without ``datasets/`` for a file beside a model, with
            ``NAME@REVISION`` for a branch, tag or commit; or ``package:NAME/FILE`` for a file in the folder of an
            installed Python package, which is not imported.

    Returns:
        The path; a path that was given as one need not exist.

    Raises:
        DataError: If the hub or the package does not have the file, or its name is incomplete.

    Example:
        >>> local_file("prompts.jsonl").name, local_file("package:dynamic_dpo/py.typed").is_file()
        ('prompts.jsonl', True)
    """
    if name.startswith(HUB_PREFIX):
        return _from_hub(name)
    if name.startswith(PACKAGE_PREFIX):
        return _in_package(name)
    return Path(name).expanduser()


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    found = _ON_THE_HUB.fullmatch(name)
    if found is None:
        raise DataError(f"{name!r} names no file on the hub: write hf://datasets/OWNER/NAME/FILE")
    kind, repository, revision, file = found.groups()
    try:
        return Path(
            hf_hub_download(repository, file, repo_type="dataset" if kind else "model", revision=revision)
        )
    # Not found, no permission, offline and not in the cache: the library has many types for these, and every one of
    # them is about the name that was given.
    except Exception as error:
        raise DataError(
            f"{name!r} could not be fetched from the hub: {error}. Check the name, the network and your access to "
            "it, or give the path of a copy"
        ) from error


def _in_package(name: str) -> Path:
    package, _, file = name.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"{name!r}: there is no installed package {package!r} with files of its own; install it, or give the "
            "path of a copy"
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not file or not path.is_file():
        raise DataError(f"{name!r}: the package {package} has no such file; write package:NAME/FILE")
    return path
