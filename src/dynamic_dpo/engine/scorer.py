"""The engine as the trainer sees it: pairs in, log-probabilities out, in the layout the model can take.

Holds the choice of layout and the settings; has no other state. Cutting a step into micro-batches is `plan`'s
business, the reference's log-probabilities are `reference`'s.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.capability import check_layouts_agree, detect_capability
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.plan import plan_microbatches
from dynamic_dpo.engine.rows import PairBatch, Rows, plain_rows, shared_rows
from dynamic_dpo.engine.score import (
    PairLogps,
    causal_lm,
    completion_lengths,
    install_pair_scoring,
    score_rows,
    score_rows_through_logits,
)
from dynamic_dpo.errors import ConfigError

logger = logging.getLogger("dynamic_dpo")


class PairScorer:
    """Scores preference pairs with a model.

    Building it tries out what the model can do and lets ``model(pair_rows=...)`` score rows.

    Args:
        model: A causal language model, with or without adapters, not yet wrapped for data parallelism.
        config: Engine settings.

    Attributes:
        shared: Whether rows share their prefix.
        reason: Why they do not, where they could have been asked to.

    Raises:
        ConfigError: If ``layout`` is ``shared`` and the model cannot share prefixes.
        ModelError: If the model is no causal language model.
    """

    def __init__(self, model: nn.Module, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        lm = causal_lm(model)
        capability = detect_capability(lm)
        if self.config.layout == "shared" and not capability.shared:
            raise ConfigError(
                f"engine.layout is 'shared', but {type(lm).__name__} cannot share prefixes: "
                f"{capability.reason}. Use 'auto' or 'plain'"
            )
        self.shared = capability.shared and self.config.layout != "plain"
        self.separate_head = capability.separate_head
        self.reason = capability.reason
        self.dtype: torch.dtype = lm.dtype
        if self.config.layout == "auto" and not self.shared:
            logger.warning(
                "%s cannot share prefixes: %s. Using the plain layout, which computes every prompt twice",
                type(lm).__name__,
                self.reason,
            )
        install_pair_scoring(model, self._score_rows)

    def _score_rows(self, model: nn.Module, rows: Rows) -> Tensor:
        lm = causal_lm(model)
        if self.separate_head:
            return score_rows(lm, rows, head_chunk=self.config.head_chunk)
        return score_rows_through_logits(lm, rows)

    @property
    def layout(self) -> str:
        """Name of the layout in use."""
        return "shared" if self.shared else "plain"

    def rows(self, pairs: PairBatch) -> Rows:
        """Lay out pairs as rows on the CPU."""
        return shared_rows(pairs) if self.shared else plain_rows(pairs)

    def plan(self, pairs: PairBatch, *, budget_factor: int = 1, at_least: int = 1) -> list[list[int]]:
        """Cut pairs into micro-batches within the token budget times ``budget_factor``."""
        return plan_microbatches(
            pairs.row_lengths(shared=self.shared),
            self.config.tokens_per_microbatch * budget_factor,
            rows_per_pair=1 if self.shared else 2,
            at_least=at_least,
        )

    def score(self, model: Any, pairs: PairBatch) -> PairLogps:
        """Score one micro-batch of pairs.

        Args:
            model: The model the scorer was built on, wrapped or not.
            pairs: Pairs that fit memory at once.

        Returns:
            Log-probabilities and lengths on the model's device, each of shape [B].
        """
        rows = self.rows(pairs).to(next(model.parameters()).device)
        logps, lengths = model(pair_rows=rows), completion_lengths(rows)
        return PairLogps(logps[:, 0], logps[:, 1], lengths[:, 0], lengths[:, 1])

    def self_check(self, model: nn.Module, pairs: PairBatch) -> None:
        """Score a few real pairs through the layout in use and through plain logits.

        Raises:
            ModelError: If they differ by more than rounding.
        """

        def score(batch: PairBatch) -> Tensor:
            return self._score_rows(model, self.rows(batch).to(next(model.parameters()).device))

        check_layouts_agree(causal_lm(model), pairs, score)
