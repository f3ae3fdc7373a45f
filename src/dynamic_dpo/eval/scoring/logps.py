"""Log-probabilities of completions under a model that is loaded for it and freed again.

By the scoring function of training. Two models of an evaluation are scored one after the other, so that memory holds
one of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from tqdm.auto import tqdm

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.models.adapters import ModelFiles, free_unused_models, open_model


def completion_logps(
    files: ModelFiles,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    masks: Sequence[Sequence[int] | None] | None = None,
    device: str,
    precision: str = "float32",
    base_only: bool = False,
    engine: EngineConfig | None = None,
    progress: bool = True,
) -> list[float]:
    """Load a model, score completions with it, and free it.

    Args:
        files: Where the model is.
        prompts: Token ids of each sequence's prompt.
        completions: Token ids of each sequence's completion.
        masks: Which tokens of each completion are scored; ``None`` for all.
        device: A torch device.
        precision: Name of a torch type: the weights'.
        base_only: Whether an adapter is switched off.
        engine: How sequences meet the model.
        progress: Whether a terminal gets a progress bar.

    Returns:
        Summed log-probabilities in nats, one a sequence.

    Raises:
        DataError: If a prompt or a completion has no tokens.
        ModelError: If the model cannot be loaded or scored.
    """
    model, _ = open_model(files, device=device, dtype=precision)
    scorer = PairScorer(model, engine)
    bar = tqdm(total=len(completions), desc="Scoring", unit="completion", disable=None if progress else True)
    with bar, model.disable_adapter() if base_only else nullcontext():
        scores = scorer.score_sequences(model, prompts, completions, masks=masks, progress=bar.update)
    del model, scorer
    free_unused_models()
    return scores.logps.tolist()
