"""The data sets of a preference run: made into tokenised pairs, and given what the reference says of them."""

from __future__ import annotations

import logging
from typing import Any

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.trainers.arguments import Truncation
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.reference_pass import IDS, MASKS, ReferencePass

logger = logging.getLogger("dynamic_dpo")

MAX_QUARANTINED = 0.05
UNLIMITED = 2**31 - 1


class ReferencedData:
    """Makes data sets ready for a run: no pair is trained or evaluated without the reference's log-probabilities.

    Args:
        policy: The policy and its reference.
        truncation: How pairs are cut.
        num_proc: Worker processes for tokenising.
        answer_tokens: Which tokens of an answer are scored, see `tokenize_pairs`.
        quarantine_max_share: Largest share of unusable rows accepted, in [0, 1].

    Attributes:
        reference_pass: Scores pairs with the reference; ``None`` until `open_reference`.
    """

    def __init__(
        self,
        policy: PolicyAndReference,
        truncation: Truncation,
        num_proc: int | None,
        answer_tokens: str = "assistant",
        quarantine_max_share: float = MAX_QUARANTINED,
    ) -> None:
        if not 0 <= quarantine_max_share <= 1:
            raise ConfigError(f"quarantine_max_share must lie in [0, 1], got {quarantine_max_share}")
        self.quarantine_max_share = quarantine_max_share
        self.policy = policy
        self.truncation = truncation
        self.answer_tokens = answer_tokens
        self.num_proc = num_proc
        self.reference_pass: ReferencePass | None = None

    @property
    def num_computed(self) -> int:
        """Pairs that the reference has scored for this run."""
        return self.reference_pass.num_computed if self.reference_pass else 0

    @property
    def num_reused(self) -> int:
        """Pairs whose log-probabilities under the reference were known already."""
        return self.reference_pass.num_reused if self.reference_pass else 0

    @property
    def reference_seconds(self) -> float:
        """What scoring with the reference has taken."""
        return self.reference_pass.seconds if self.reference_pass else 0.0

    def prepare(self, dataset: Any) -> Any:
        """Return a data set, or each of a dict of them, as tokenised pairs; see `prepare_pairs`."""
        if isinstance(dataset, dict):
            return {name: self.prepare(part) for name, part in dataset.items()}
        return prepare_pairs(
            dataset,
            self.policy.tokenizer,
            self.truncation,
            self.num_proc,
            self.answer_tokens,
            self.quarantine_max_share,
        )

    def open_reference(self, accelerator: Any, *, show_progress: bool) -> None:
        """Get ready to score pairs with the reference: from now on `attach` does."""
        self.reference_pass = self.policy.open_reference(accelerator, show_progress=show_progress)

    def attach(self, dataset: Any, *, name: str, may_score: bool = True) -> Any:
        """Return a prepared data set with the reference's log-probabilities. Collective over ranks.

        Args:
            dataset: A data set, a dict of them, or ``None``; returned as it is where no reference was opened.
            name: What the progress bar calls it; those of a dict go by their own names.
            may_score: Whether the reference can still be scored; if not, all pairs have to be known.

        Raises:
            ModelError: If a pair is not known and the reference is gone.
        """
        if dataset is None or self.reference_pass is None:
            return dataset
        if isinstance(dataset, dict):
            return {key: self.attach(part, name=key, may_score=may_score) for key, part in dataset.items()}
        return self.reference_pass.attach(dataset, name=name, may_score=may_score)

    def add_evaluation_set(self, dataset: Any, *, policy_moved: bool) -> Any:
        """Prepare an evaluation set that the run was not given at its start, and attach the reference's part.

        Args:
            dataset: The set, or a dict of them.
            policy_moved: Whether the policy has made a step.

        Raises:
            ModelError: If a pair of it was never scored by the reference, and that is gone.
        """
        may_score = self.policy.can_score_reference(policy_moved=policy_moved)
        return self.attach(self.prepare(dataset), name="eval", may_score=may_score)


def prepare_pairs(
    dataset: Any,
    tokenizer: Any,
    truncation: Truncation,
    num_proc: int | None = None,
    answer_tokens: str = "assistant",
    quarantine_max_share: float = MAX_QUARANTINED,
) -> Any:
    """Return ``dataset`` as tokenised pairs ``{prompt_ids, chosen_ids, rejected_ids, row}``, and their masks.

    Args:
        dataset: A map-style data set: tokenised and cut to length already, or in a TRL preference format.
        tokenizer: Renders and tokenises where needed.
        truncation: How pairs are cut.
        num_proc: Worker processes.
        answer_tokens: Which tokens of an answer are scored, see `tokenize_pairs`.
        quarantine_max_share: Largest share of unusable rows accepted, in [0, 1].

    Returns:
        The data set, or ``None`` for ``None``.

    Raises:
        DataError: If it cannot be indexed, no pair is usable, too many are not, or a mask does not fit.
    """
    if dataset is None:
        return None
    columns = getattr(dataset, "column_names", None)
    if columns is None or not hasattr(dataset, "select"):
        raise DataError(
            f"expected a datasets.Dataset of preference pairs, got {type(dataset).__name__}: streams cannot be used, "
            "because the reference is scored once per pair, before the first step. Load the set without "
            "streaming=True, or take a part of the stream: datasets.Dataset.from_list(list(stream.take(10_000)))"
        )
    if set(IDS) <= set(columns):
        if len(dataset) == 0:
            raise DataError("the data set holds no pair")
        _check_masks(dataset)
        unread = sorted({*columns} - {*IDS, *MASKS, "row"})
        if unread:
            logger.warning(
                "not read of pairs that are tokenised already: %s. What the reference says of them is scored here",
                ", ".join(unread),
            )
        return dataset if "row" in columns else dataset.add_column("row", list(range(len(dataset))))

    from dynamic_dpo.data.preference import to_preference_pairs
    from dynamic_dpo.data.tokenize import tokenize_pairs

    total = len(dataset)
    pairs, quarantine = to_preference_pairs(dataset)
    tokenised = tokenize_pairs(
        pairs,
        tokenizer,
        max_length=truncation.max_length or UNLIMITED,
        max_prompt_length=truncation.max_prompt_length,
        max_completion_length=truncation.max_completion_length,
        truncation_mode=truncation.truncation_mode,
        answer_tokens=answer_tokens,
        num_proc=num_proc,
        quarantine=quarantine,
    )
    if tokenised.num_dropped_turns:
        logger.warning(
            "%d turns behind the last answer of the assistant were left out", tokenised.num_dropped_turns
        )
    quarantine = tokenised.quarantine
    if len(quarantine):
        logger.warning(
            "%d of %d pairs cannot be used: %s", len(quarantine), total, quarantine.summary(total=total)
        )
    quarantine.raise_if_above(quarantine_max_share, total)
    if len(tokenised.dataset) == 0:
        raise DataError(
            f"none of {total} rows is a usable preference pair: {quarantine.summary(total=total)}"
        )
    return tokenised.dataset


def _check_masks(dataset: Any) -> None:
    """Refuse masks of tokenised pairs that are not one 0 or 1 for each token of their answer, with one 1 at least."""
    for ids, mask in zip(IDS[1:], MASKS, strict=True):
        if mask not in dataset.column_names:
            continue
        start = 0
        for batch in dataset.select_columns([ids, mask]).iter(batch_size=1000):
            for place, (tokens, counts) in enumerate(zip(batch[ids], batch[mask], strict=True)):
                if counts is None or (len(counts) == len(tokens) and {1} <= {*counts} <= {0, 1}):
                    continue
                raise DataError(
                    f"{mask} of pair {start + place} has {len(counts)} values of {sorted({*counts})} for "
                    f"{len(tokens)} tokens: expected null, or 1 for each token of {ids} that is scored and 0 for the "
                    "others, not all 0"
                )
            start += len(batch[ids])
