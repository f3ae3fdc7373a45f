"""The card of a trained model: by which method, on what data, and at what beta it was trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from huggingface_hub import ModelCardData

TAGS = ("dynamic-dpo", "dpo")


def model_card(
    name: str,
    *,
    method: str,
    beta: float | None,
    base: str | None,
    dataset: str | None,
    num_pairs: int,
    tags: Iterable[str] = (),
) -> str:
    """Return the text of a ``README.md`` with the header that hubs read.

    Args:
        name: What the model is called.
        method: Name of the preference method.
        beta: Beta at the end of the training, ``None`` for a method without one.
        base: The model that training started from, where it is known by name.
        dataset: Name of the data, where it is known.
        num_pairs: Pairs of the training set.
        tags: Tags beside those of every card.

    Example:
        >>> print(model_card("m", method="dpo", beta=0.1, base=None, dataset=None, num_pairs=8).splitlines()[-1])
        - Beta at the end: 0.1
    """
    header: dict[str, Any] = {
        "library_name": "transformers",
        "model_name": name,
        "base_model": base,
        "datasets": [dataset] if dataset else None,
        "tags": list(dict.fromkeys([*TAGS, *tags])),
    }
    lines = [
        "---",
        ModelCardData(**header).to_yaml(),
        "---",
        "",
        f"# {name}",
        "",
        f"Trained on preference pairs with dynamic-dpo, from {f'`{base}`' if base else 'a model without a name'}.",
        "",
        f"- Method: {method}",
        f"- Data: {dataset or 'a data set without a name'}, {num_pairs} pairs",
        f"- Beta at the end: {'none' if beta is None else f'{beta:.6g}'}",
    ]
    return "\n".join(lines) + "\n"
