"""Rewards and margins of a trained policy on given pairs, by the same scoring function as in training.

Reads pairs of any supported shape, scores them with policy and reference one after the other, and gives one record a
pair. What the margins add up to is computed in `metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from dynamic_dpo.data.pairing import MASK_FIELDS
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.data.tokenize import tokenize_pairs
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch, scored_lengths
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.eval.scoring.logps import completion_logps
from dynamic_dpo.models.adapters import find_model, pick_device
from dynamic_dpo.models.sources import load_tokenizer
from dynamic_dpo.models.vocabulary import check_same_tokens
from dynamic_dpo.utils.files import write_text
from dynamic_dpo.utils.hashing import content_hash


@dataclass(frozen=True)
class ScoredPair:
    """One pair as policy and reference see it.

    Attributes:
        id: Hash of the token ids: equal pairs have one id in every file.
        row: Number of its row in the set.
        chosen_reward: beta × logratio of the chosen answer.
        rejected_reward: The same of the rejected one.
        reward_margin: Their difference.
        margin: The same without beta, in nats.
        chosen_logps: Summed log-probability of the chosen answer under the policy, nats.
        rejected_logps: The same of the rejected one.
        ref_chosen_logps: The reference's.
        ref_rejected_logps: The reference's.
        chosen_tokens: Tokens of the chosen answer that are scored, its end included.
        rejected_tokens: The same of the rejected one.
    """

    id: str
    row: int
    chosen_reward: float
    rejected_reward: float
    reward_margin: float
    margin: float
    chosen_logps: float
    rejected_logps: float
    ref_chosen_logps: float
    ref_rejected_logps: float
    chosen_tokens: int
    rejected_tokens: int


class ScoredPairs(NamedTuple):
    """The pairs of a set, and the rows that gave none.

    Attributes:
        pairs: In the order of the rows.
        quarantined: Rows that gave no pair, by reason.
        num_truncated: Pairs that lost tokens to ``max_length``.
    """

    pairs: list[ScoredPair]
    quarantined: dict[str, int]
    num_truncated: int

    @property
    def margins(self) -> list[float]:
        """Margins in nats, without beta."""
        return [pair.margin for pair in self.pairs]


def score_pairs(
    model: str,
    reference: str | None,
    data: str | Dataset | Iterable[Mapping[str, Any]],
    *,
    revision: str | None = None,
    beta: float = 0.1,
    subset: str = "train",
    chat_template: bool = False,
    max_length: int = 512,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    truncation_mode: str = "keep_start",
    answer_tokens: str = "assistant",
    quarantine_max_share: float = 0.05,
    device: str = "auto",
    precision: str = "float32",
    tokens_per_microbatch: int | None = None,
    progress: bool = True,
) -> ScoredPairs:
    """Score preference pairs with a policy and its reference.

    The models are loaded one after the other, in the same number format: two formats alone would make margins.

    Args:
        model: The policy: hub name, folder, adapter folder, ``.gguf`` file or ``package:NAME``.
        reference: The reference, in the same forms; ``None`` for the base of an adapter.
        data: Name of a set, as ``load_rows`` takes it, a dataset, or rows; any shape of ``docs/data.md``.
        revision: Branch, tag or commit of the policy on the hub.
        beta: Scale of the rewards, positive.
        subset: Split with an optional slice, where ``data`` is a name.
        chat_template: Render text rows through the policy's chat template.
        max_length: Longest prompt plus answer in tokens.
        max_prompt_length: Longest prompt, or ``None``.
        max_completion_length: Longest answer, or ``None``.
        truncation_mode: ``keep_start`` or ``keep_end``.
        answer_tokens: Which tokens of an answer are scored: those of the ``assistant``, or ``all`` behind the prompt.
        quarantine_max_share: Largest share of unusable rows accepted, in [0, 1].
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: Number format of both models.
        tokens_per_microbatch: Token budget; memory only. ``None`` chooses it from the memory there is.
        progress: Whether a terminal gets a progress bar.

    Returns:
        The pairs with their scores.

    Raises:
        ConfigError: If a number is out of range or the device is not there.
        DataError: If the data cannot be used.
        ModelError: If a model cannot be used, or the two have different tokens.
    """
    if not beta > 0:
        raise ConfigError(f"beta must be positive, got {beta}")
    where, files = pick_device(device), find_model(model, revision=revision)
    if reference is None and files.adapter is None:
        raise ModelError(
            f"{model} is no adapter, so its reference cannot be found in it: name the model that training started "
            "from"
        )
    reference_files = None if reference is None else find_model(reference)
    tokenizer = load_tokenizer(files.tokenizer)
    if reference_files is not None:
        check_same_tokens(
            tokenizer,
            load_tokenizer(reference_files.tokenizer),
            policy_name=model,
            reference_name=reference_files.base.name,
        )
    rows = load_rows(data, subset=subset) if isinstance(data, str) else data
    read = to_preference_pairs(rows, chat_template=chat_template)
    tokenised = tokenize_pairs(
        read.dataset,
        tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        max_completion_length=max_completion_length,
        truncation_mode=truncation_mode,
        answer_tokens=answer_tokens,
        quarantine=read.quarantine,
    )
    quarantine = tokenised.quarantine
    quarantine.raise_if_above(quarantine_max_share, len(tokenised.dataset) + len(quarantine))
    pairs = _as_batch(tokenised.dataset)
    logps = partial(
        completion_logps,
        prompts=[*pairs.prompts, *pairs.prompts],
        completions=[*pairs.chosen, *pairs.rejected],
        masks=None
        if pairs.masks is None
        else [mask for side in zip(*pairs.masks, strict=True) for mask in side],
        device=where,
        precision=precision,
        engine=EngineConfig(tokens_per_microbatch=tokens_per_microbatch),
        progress=progress,
    )
    policy = logps(files)
    start = logps(reference_files) if reference_files else logps(files, base_only=True)
    return ScoredPairs(
        _scored(pairs, policy, start, beta), dict(quarantine.counts()), tokenised.num_truncated
    )


def write_scores(path: str | Path, pairs: Iterable[ScoredPair]) -> Path:
    """Write one pair a line; the file appears whole or not at all."""
    return write_text(path, "".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))


def _as_batch(dataset: Dataset) -> PairBatch:
    prompts, chosen, rejected, rows = (
        list(dataset[name][:]) for name in ("prompt_ids", "chosen_ids", "rejected_ids", "row")
    )
    has_masks = set(MASK_FIELDS) <= set(dataset.column_names)
    masks = [list(dataset[name][:]) if has_masks else None for name in MASK_FIELDS]
    return PairBatch(prompts, chosen, rejected, rows, chosen_masks=masks[0], rejected_masks=masks[1])


def _scored(
    pairs: PairBatch, policy: Sequence[float], start: Sequence[float], beta: float
) -> list[ScoredPair]:
    """Put policy and reference together: of each the log-probabilities of all chosen, then of all rejected."""
    scored = []
    lengths = scored_lengths(pairs)
    for place in range(len(pairs)):
        ids = [list(part[place]) for part in (pairs.prompts, pairs.chosen, pairs.rejected)]
        (chosen, rejected), (ref_chosen, ref_rejected) = (
            (values[place], values[len(pairs) + place]) for values in (policy, start)
        )
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        scored.append(
            ScoredPair(
                id=content_hash(ids),
                row=pairs.rows[place],
                chosen_reward=beta * (chosen - ref_chosen),
                rejected_reward=beta * (rejected - ref_rejected),
                reward_margin=beta * margin,
                margin=margin,
                chosen_logps=chosen,
                rejected_logps=rejected,
                ref_chosen_logps=ref_chosen,
                ref_rejected_logps=ref_rejected,
                chosen_tokens=lengths[place][0],
                rejected_tokens=lengths[place][1],
            )
        )
    return scored
