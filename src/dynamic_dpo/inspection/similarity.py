"""How alike a model's states are for the two answers of a pair: pairs that are alike pull both answers down.

The centred hidden embedding similarity (CHES) of Razin et al. 2024 (Unintentional Unalignment: Likelihood
Displacement in Direct Preference Optimization, https://arxiv.org/abs/2410.08847, definition 2): with h_k the last
hidden state that predicts an answer's k-th token,

    CHES = <sum of the chosen's h, sum of the rejected's h> - |sum of the chosen's h|²,

here in the form that their experiments filter by, each sum divided by its answer's length. The higher it is, the more
the chosen answer is expected to lose probability.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dynamic_dpo.data.pairing import MASK_FIELDS


class PairSimilarity(NamedTuple):
    """One pair and its score.

    Attributes:
        row: Number of the row that it came from.
        ches: The score, divided by the squared norm of the chosen answer's mean state, so that 0 is "the same states"
            and lower is "less alike"; a model's own scale drops out.
    """

    row: int
    ches: float


def ches(chosen: Tensor, rejected: Tensor) -> float:
    """Return the length-normalised score of a pair, relative to the chosen answer's own.

    Args:
        chosen: States that predict the chosen answer's tokens. Shape [T, H].
        rejected: The same of the rejected answer. Shape [S, H].

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]])
        >>> ches(a, a), ches(a, b), ches(a, torch.cat([a, 3 * a]))
        (0.0, -1.0, 1.0)
    """
    first, second = chosen.double().mean(0), rejected.double().mean(0)
    own = float(first @ first)
    return (float(first @ second) - own) / own if own else 0.0


def pair_similarities(
    model: Any, pairs: Iterable[Mapping[str, Any]], *, total: int | None = None, progress: bool = True
) -> list[PairSimilarity]:
    """Score pairs by a model's states.

    Args:
        model: A causal language model, in evaluation mode.
        pairs: Rows with ``row, prompt_ids, chosen_ids, rejected_ids``, and masks where others speak within an answer.
        total: How many there are, for the bar.
        progress: Whether a terminal gets a progress bar.

    Returns:
        One score a pair, in their order.
    """
    found = []
    bar = tqdm(pairs, total=total, desc="States", unit="pair", disable=None if progress else True)
    with torch.inference_mode():
        for pair in bar:
            states = [
                _states(model, pair["prompt_ids"], pair[ids], pair.get(mask))
                for ids, mask in zip(("chosen_ids", "rejected_ids"), MASK_FIELDS, strict=True)
            ]
            found.append(PairSimilarity(int(pair["row"]), ches(*states)))
    return found


def _states(
    model: Any, prompt: Sequence[int], answer: Sequence[int], mask: Sequence[int] | None = None
) -> Tensor:
    """Return the last hidden states that predict an answer's scored tokens. Shape [T, H]."""
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    states: Tensor = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
    # The state at a position predicts the token behind it.
    predicting = states[len(prompt) - 1 : -1]
    return predicting if mask is None else predicting[torch.tensor(mask, device=states.device) > 0]
