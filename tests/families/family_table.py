"""The page on families, docs/models.md: written from outcomes, and read again by the test that holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from families.configurations import NOT_TRIED
from families.family_check import Outcome

MOST = 1e-5
_BOUNDS = (1e-6, 3e-6, MOST)

_INTRODUCTION = """# Models

Every family of causal language models in transformers is tried with a tiny random configuration of its own:
layers of every kind it has, windows of eight tokens, experts, latent attention, pictures that no row uses. Six
pairs of different lengths are scored in the layout that the engine chose, some longer than the windows, and the
losses and the gradient of all weights are compared with each sequence scored alone through the model's own
logits. Then the trainer makes two steps, with its self-check. `make families` does it again in some minutes, and
writes this page.

{counts} What `packed`, `shared` and `plain` mean stands in
[engine.md](engine.md). The distances are of losses, in nats, and of the gradient, as a share of its size.

| Family | Layout | Losses | Gradient | What is slow, and why |
|---|---|---|---|---|
"""

_END = """
## What was not tried

Of what transformers lists as causal language models, for this reason:

{left_out}

Models with pictures are trained on text: a row with images, sound or video is set aside with the reason
`has_images` ([data.md](data.md)). What a kernel of its own does on a GPU (flash attention, mamba, the linear
attention of `fla`) was not tried.
"""


def is_wrong(outcome: Outcome) -> bool:
    """Return whether a family was aborted, or its numbers are not those of each sequence alone."""
    return bool(outcome.fault) or not max(outcome.loss_distance, outcome.gradient_distance) <= MOST


def line(name: str, outcome: Outcome) -> str:
    """Return a family's line of the table."""
    if outcome.fault:
        return f"| `{name}` | | | | **{outcome.fault}** |"
    bounds = (_bound(outcome.loss_distance), _bound(outcome.gradient_distance))
    return f"| `{name}` | {outcome.layout} | {bounds[0]} | {bounds[1]} | {outcome.why_slow} |"


def _bound(distance: float) -> str:
    """Return the smallest of a few bounds that holds: digits of rounding differ between processors."""
    bound = next((bound for bound in _BOUNDS if distance <= bound), None)
    return f"**{distance:.1e}**" if bound is None else f"≤ {bound:.0e}".replace("e-0", "e-")


def page(outcomes: Mapping[str, Outcome]) -> str:
    """Return the whole page."""
    layouts = Counter(outcome.layout for outcome in outcomes.values() if not outcome.fault)
    wrong = sum(map(is_wrong, outcomes.values()))
    counts = (
        f"{len(outcomes)} families: {layouts['packed']} packed, {layouts['shared']} shared, "
        f"{layouts['plain']} plain; {wrong or 'none'} wrong or aborted."
    )
    left_out = "\n".join(
        f"- {reason}: {', '.join(f'`{name}`' for name in names.split())}"
        for reason, names in NOT_TRIED.items()
    )
    lines = "\n".join(line(name, outcome) for name, outcome in sorted(outcomes.items()))
    return _INTRODUCTION.format(counts=counts) + lines + "\n" + _END.format(left_out=left_out)


def layouts_of(text: str) -> dict[str, str]:
    """Return the layout of each family in the page's table."""
    cells = [row.split("|") for row in text.splitlines() if row.startswith("| `")]
    return {row[1].strip().strip("`"): row[2].strip() for row in cells}
