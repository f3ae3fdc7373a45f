"""Figures in pages that are written by hand: what stands between two markers is made from results."""

from __future__ import annotations

from collections.abc import Sequence


def replace_block(text: str, name: str, block: str) -> str:
    """Return a page with what lies between the markers of ``name`` replaced.

    Args:
        text: The page.
        name: Experiment and block, as in ``bandit:summary``; the block ends at ``<!-- bandit:end -->``.
        block: What stands there from now on.

    Raises:
        ValueError: If the page has no such markers.

    Example:
        >>> replace_block("a <!-- bandit:x -->old<!-- bandit:end --> b", "bandit:x", "new").split()
        ['a', '<!--', 'bandit:x', '-->', 'new', '<!--', 'bandit:end', '-->', 'b']
    """
    begin, end = f"<!-- {name} -->", f"<!-- {name.split(':')[0]}:end -->"
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(
            f"the page has no block between {begin} and {end}: put both where the figures belong"
        )
    return f"{before}{begin}\n\n{block.strip()}\n\n{end}{after}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, all columns but the first aligned to the right."""
    ruler = ["---", *(["---:"] * (len(head) - 1))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows))


def p_text(p_value: float) -> str:
    """Return a p-value as tables show it.

    Example:
        >>> p_text(0.0213), p_text(1e-5)
        ('.021', '< .001')
    """
    return "< .001" if p_value < 0.001 else f"{p_value:.3f}".removeprefix("0")
