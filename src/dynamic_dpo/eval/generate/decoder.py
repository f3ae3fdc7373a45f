"""A causal language model read token by token, for a batch whose rows may leave.

Holds the model's cache and attention mask, and gives every row the positions it would have alone. The next token is
chosen in ``sampling``, the batch led through in ``batched``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynamic_dpo.errors import ModelError


def forward_parameters(model: Any) -> set[str]:
    """Return what a model's ``forward`` takes, that of the model under an adapter where there is one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(base.forward).parameters)


class Decoder:
    """One batch being read by one model.

    Args:
        model: A decoder-only Hugging Face model, with or without adapters.

    Raises:
        ModelError: If the model is an encoder-decoder.
    """

    def __init__(self, model: Any) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise ModelError(
                f"generation needs a decoder-only language model, got the encoder-decoder "
                f"{type(model).__name__}; give a causal language model"
            )
        self.model = model
        accepted = forward_parameters(model)
        # Models with relative positions take no position_ids; old ones score every position.
        self.takes_positions = "position_ids" in accepted
        self.extra = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.cache: Any = None
        self.mask = torch.empty(0, 0, dtype=torch.long)

    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Begin with whole prompts, padded on the left.

        Args:
            rows: Token ids, each row at least one.

        Returns:
            Scores of each row's next token, float32. Shape [B, V].
        """
        width = max(len(row) for row in rows)
        # Padding is hidden by the mask, so its id does not matter; 0 is in every vocabulary.
        tokens = [[0] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        self.cache = None
        self.mask = torch.tensor(mask, device=self.model.device)
        return self._forward(torch.tensor(tokens, device=self.model.device))

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in every row.

        Args:
            tokens: Ids. Shape [B].

        Returns:
            Scores of each row's next token, float32. Shape [B, V].
        """
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        return self._forward(tokens.unsqueeze(-1))

    def select(self, index: Tensor) -> None:
        """Keep the rows numbered in ``index`` [B'], in that order; a row may be kept several times."""
        self.mask = self.mask[index]
        self.cache.reorder_cache(index)

    def _forward(self, tokens: Tensor) -> Tensor:
        positions = {}
        if self.takes_positions:
            # Padding gets position 0 rather than -1: some models look positions up in a table.
            position_ids = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)
            positions = {"position_ids": position_ids[:, -tokens.shape[1] :]}
        output = self.model(
            input_ids=tokens,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            **positions,
            **self.extra,
        )
        self.cache = getattr(output, "past_key_values", None)
        if not hasattr(self.cache, "reorder_cache"):
            raise ModelError(
                f"{type(self.model).__name__} returned no cache whose rows can be selected; generation "
                "needs a model that supports use_cache"
            )
        logits: Tensor = output.logits[:, -1].float()
        return logits
