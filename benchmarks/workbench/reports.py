"""Where a benchmark's findings go: printed, and as ``NAME.md`` and ``NAME.json`` in the output folder.

The Markdown parts of several benchmarks make up the measured block of the performance page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.jobs import Result
from workbench.machine import describe_machine

# The order of the page; each is the file name of one benchmark's part.
PARTS = (
    "training",
    "reference_pass",
    "sweep",
    "overhead",
    "saturation",
    "memory",
    "growth",
    "sampling",
    "data_preparation",
    "gpu",
)
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def publish(
    name: str,
    markdown: str,
    out: Path,
    *,
    results: Mapping[str, Sequence[Result]] | None = None,
    **facts: Any,
) -> None:
    """Print a benchmark's findings and write them to the output folder.

    Args:
        name: One of `PARTS`, or a name of its own for what is no part of the page.
        markdown: Heading, table and remarks.
        out: The output folder.
        results: What the workers found, round by round, by name.
        **facts: Figures drawn from them.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = f"{markdown.rstrip()}\n\n{stamp(results)}\n"
    record = {
        "date": _today(),
        "machine": describe_machine(),
        **facts,
        "results": {key: [asdict(result) for result in runs] for key, runs in (results or {}).items()},
    }
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps(record, indent=2))
    print(f"\n{text}", flush=True)


def stamp(results: Mapping[str, Sequence[Result]] | None = None) -> str:
    """Return when and on what something was measured, in a sentence in italics."""
    runs = [result for found in (results or {}).values() for result in found]
    text = f"{_today()}, {describe_machine()}"
    if runs:
        versions = (
            f"{name} {runs[0].versions[name]}"
            for name in ("torch", "transformers", "trl")
            if name in runs[0].versions
        )
        text += f", {runs[0].num_threads} threads; " + ", ".join(versions)
    return f"*Measured {text}.*"


def measured_block(out: Path) -> str:
    """Return the parts in the output folder, in the page's order.

    Raises:
        SystemExit: If there is none.
    """
    parts = [path.read_text().strip() for name in PARTS if (path := out / f"{name}.md").is_file()]
    if not parts:
        raise SystemExit(f"no results in {out}: run `make bench` first, or give the folder with --out")
    return "\n\n".join(parts)


def replace_block(page: str, block: str) -> str:
    """Return ``page`` with what stands between its markers replaced.

    Raises:
        SystemExit: If the page does not have each marker once, in order.

    Example:
        >>> replace_block("a <!-- bench:begin -->old<!-- bench:end --> z", "new").splitlines()
        ['a <!-- bench:begin -->', '', 'new', '', '<!-- bench:end --> z']
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise SystemExit(f"the page must hold {BEGIN} and then {END}, each once: figures go between them")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
