"""What a fine-tuning on rows of tokens costs: needed and computed positions of the batches of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from dynamic_dpo.models.causal_lm import causal_lm
from dynamic_dpo.trainers.watch.cost import StepCost
from dynamic_dpo.trainers.watch.model_work import ModelWork, PairTokens

_NO_LABEL = -100
COUNTED: Final = ("input_ids", "labels", "attention_mask", "position_ids")
"""What is read of a batch."""


class RowCost(StepCost):
    """What steps on rows cost. Batches are read once their step is done, so that no step waits for it.

    Args:
        model: The model that is trained.
        accelerator: The trainer's accelerator.
    """

    def __init__(self, model: Any, accelerator: Any) -> None:
        super().__init__(accelerator)
        self.model = model
        self._batches: list[Mapping[str, Tensor]] = []

    def count(self, batch: Mapping[str, Tensor]) -> None:
        """Count a batch of this rank's share of a step."""
        self._batches.append(batch)

    def end_count(self) -> None:
        """Read the step's batches."""
        batches, self._batches = self._batches, []
        for batch in batches:
            tokens = row_tokens(batch)
            self.add(tokens, flops=self._work.training_flops(tokens), positions=batch["input_ids"].numel())

    def dtype_of_weights(self) -> torch.dtype:
        """Return the type of the model's weights."""
        dtype: torch.dtype = causal_lm(self.model).dtype
        return dtype

    @cached_property
    def _work(self) -> ModelWork:
        return ModelWork.of(self.model)


def row_tokens(batch: Mapping[str, Tensor]) -> PairTokens:
    """Return what a batch needs computed: of each row all positions but the last, from which nothing follows.

    Args:
        batch: ``input_ids`` and ``labels`` [B, T], and what says where rows end: ``position_ids`` that begin anew,
            ``attention_mask``, or nothing, where all are full.

    Example:
        >>> ids = torch.ones(2, 4, dtype=torch.long)
        >>> labels = torch.tensor([[-100, -100, 7, 8], [-100, 9, -100, -100]])
        >>> mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        >>> row_tokens({"input_ids": ids, "labels": labels, "attention_mask": mask})
        PairTokens(needed=4, predicting=3, attended=7)
    """
    lengths = (_row_lengths(batch) - 1).clamp(min=0)
    predicting = (batch["labels"][:, 1:] != _NO_LABEL).sum()
    attended = (lengths * (lengths + 1) // 2).sum()
    # Read at once: on a GPU every number that the host asks for is a wait of its own.
    return PairTokens(*torch.stack([lengths.sum(), predicting, attended]).tolist())


def _row_lengths(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens of each row; several may stand behind one another in a row of the batch."""
    ids, mask, positions = batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
    if mask is None:
        mask = torch.ones_like(ids)
    if positions is None:
        return mask.sum(1)
    places = positions[mask.bool()]
    starts = (places == 0).nonzero().flatten()
    return torch.diff(starts, append=starts.new_tensor([len(places)]))
