"""The pairs on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from dynamic_dpo.data.sources import PAIRS_FILE
from dynamic_dpo.errors import DataError


def push_pairs(pairs: Path, repository: str, *, private: bool) -> str:
    """Upload a file of pairs to a data set of the hub, which is made if it is not there.

    Args:
        pairs: The file.
        repository: ``NAME`` or ``OWNER/NAME``.
        private: Whether a repository that is made is private.

    Returns:
        The repository's address.

    Raises:
        DataError: If the hub refuses it, or cannot be reached; the file stays where it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_file(
            path_or_fileobj=str(pairs), path_in_repo=PAIRS_FILE, repo_id=made.repo_id, repo_type="dataset"
        )
    # The hub's own errors, those of the connection and of a missing token: all are about what was asked for.
    except Exception as error:
        raise DataError(
            f"the pairs could not be pushed to {repository!r}: {error}. They are in {pairs}; check the name, the "
            "network and the token (hf auth login)"
        ) from error
    return str(made)
