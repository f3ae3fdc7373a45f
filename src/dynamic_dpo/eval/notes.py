"""The notes that the stages of an evaluation leave: which settings each ran with, and what came out.

One JSON file, ``manifest.json``, replaced whole. A stage that runs alone finds here what the stages before it did,
and refuses to go on from what other settings made.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.utils.files import write_json
from dynamic_dpo.utils.hashing import content_hash
from dynamic_dpo.utils.secrets import redact_values

FILE_NAME = "manifest.json"
_VERSION = 1


class StageNotes:
    """The notes in a folder, read on creation and written by every change.

    Args:
        folder: The evaluation's folder; need not exist yet.

    Attributes:
        created: When the evaluation was begun, in UTC, to the second. It stays through every resumption.

    Raises:
        DataError: If the file is damaged or of another version.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> StageNotes(folder).put("prompts", {"seed": 1}, {"drawn": 8})
        >>> StageNotes(folder).get("prompts", {"seed": 1})
        {'drawn': 8}
        >>> StageNotes(folder).get("prompts", {"seed": 2}) is None
        True
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / FILE_NAME
        self._content = self._read()
        self.created: str = self._content["created"] or datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    def put(self, name: str, settings: Any, result: Any) -> None:
        """Note the result of a stage and the settings it was made with."""
        # A stage may run for hours, and another process may have left notes meanwhile.
        self._content = self._read()
        self.created = self._content["created"] or self.created
        self._content["created"] = self.created
        self._content["entries"][name] = {"settings": content_hash(settings), "result": result}
        write_json(self.path, redact_values(self._content))

    def get(self, name: str, settings: Any) -> Any | None:
        """Return a result if it was made with these settings, else ``None``."""
        entry = self._content["entries"].get(name)
        return entry["result"] if entry and entry["settings"] == content_hash(settings) else None

    def require(self, name: str, settings: Any, *, stage: str, keys: str) -> Any:
        """Return a result that must be there.

        Args:
            name: Of the entry.
            settings: The settings of now.
            stage: The stage that makes it.
            keys: Which keys of the evaluation file decide, for the message.

        Raises:
            ConfigError: If the stage has not run, or ran with other settings.
        """
        result = self.get(name, settings)
        if result is not None:
            return result
        if name in self._content["entries"]:
            raise ConfigError(
                f"{keys} changed since the stage {stage} ran in {self.path.parent}: run it again "
                f"(--stage {stage}, or all stages), or take the change back"
            )
        raise ConfigError(
            f"{self.path.parent} has nothing of the stage {stage} yet ({keys}): run it first (--stage {stage})"
        )

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {"version": _VERSION, "created": None, "entries": {}}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            known = content["version"] == _VERSION and isinstance(content["entries"], dict)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise DataError(
                f"{self.path} is no manifest of this version: move the folder away, or choose another output.dir"
            )
        return dict(content)
