"""Gives a data set its reference log-probabilities: looked up where known, scored where not, on all ranks.

The store and its keys belong to the engine; here the work is shared out over ranks and the results become
columns of the data set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dynamic_dpo.engine.reference_store import ReferenceEntry, ReferenceStore, compute_entries, pair_key
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.score import PairLogps
from dynamic_dpo.errors import ModelError

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
# Of a data set in which others speak within an answer; null where all of it is scored.
MASKS = ("chosen_mask", "rejected_mask")


def collate_pairs(examples: list[dict[str, Any]]) -> dict[str, PairBatch]:
    """Collect tokenised examples as one batch of pairs, reference log-probabilities included where known.

    A rank's share of a step may hold none.
    """
    names = examples[0] if examples else (*IDS, "row")
    columns = {key: [example[key] for example in examples] for key in names}
    known = [
        torch.tensor(columns[name], dtype=torch.float64) if name in columns else None for name in COLUMNS
    ]
    return {
        "pairs": PairBatch(
            prompts=columns["prompt_ids"],
            chosen=columns["chosen_ids"],
            rejected=columns["rejected_ids"],
            rows=columns["row"],
            ref_chosen_logps=known[0],
            ref_rejected_logps=known[1],
            chosen_masks=columns.get(MASKS[0]),
            rejected_masks=columns.get(MASKS[1]),
        )
    }


class ReferencePass:
    """Looks up and computes reference log-probabilities for whole data sets.

    Args:
        accelerator: The trainer's accelerator.
        store: Where results are kept.
        score: Scores a micro-batch with the reference, without gradients.
        plan: Cuts pairs into micro-batches. One without pairs is scored like the others, as a pass of none.
        show_progress: Whether the main process shows a progress bar.

    Attributes:
        num_computed: Pairs scored so far.
        num_reused: Pairs found in the store so far.
        seconds: Spent on scoring so far.
    """

    def __init__(
        self,
        accelerator: Any,
        store: ReferenceStore,
        score: Callable[[PairBatch], PairLogps],
        plan: Callable[[PairBatch], list[list[int]]],
        *,
        show_progress: bool = True,
    ) -> None:
        self.accelerator = accelerator
        self.store = store
        self.score = score
        self.plan = plan
        self.show_progress = show_progress
        self.num_computed = 0
        self.num_reused = 0
        self.seconds = 0.0

    def attach(self, dataset: Any, *, name: str, may_score: bool = True) -> Any:
        """Return ``dataset`` with the columns ``ref_chosen_logps`` and ``ref_rejected_logps``.

        Collective over ranks: what is missing is decided by the main process and scored by all.

        Args:
            dataset: Tokenised pairs.
            name: What the progress bar calls them.
            may_score: Whether the reference can still be scored.

        Raises:
            CheckpointError: If the store cannot be written.
            ModelError: If a pair is missing and cannot be scored any more.
        """
        keys = _keys(dataset)
        missing: list[int] = []
        if self.accelerator.is_main_process:
            first = {key: i for i, key in reversed(list(enumerate(keys)))}
            missing = sorted(i for key, i in first.items() if key not in self.store)
        missing = self._broadcast(missing)
        if missing and not may_score:
            raise ModelError(
                f"this evaluation set has {len(missing)} of {len(keys)} pairs without reference log-probabilities "
                "and the reference is gone: give it to the trainer as eval_dataset, or pass ref_model as a model"
            )
        begun = time.perf_counter()
        self._compute(dataset, keys, missing, name)
        self.seconds += time.perf_counter() - begun
        values = [self.store[key][:2] for key in keys] if self.accelerator.is_main_process else None
        columns = np.array(self._broadcast(values), np.float64).reshape(-1, 2)
        self.num_computed += len(missing)
        self.num_reused += len(keys) - len(missing)
        kept = dataset.remove_columns([c for c in COLUMNS if c in dataset.column_names])
        for index, column in enumerate(COLUMNS):
            kept = kept.add_column(column, columns[:, index])
        return kept

    def _compute(self, dataset: Any, keys: list[bytes], missing: list[int], name: str) -> None:
        if not missing:
            return
        rank, num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        mine = missing[rank::num_ranks]
        fresh: list[tuple[bytes, ReferenceEntry]] = []

        def score(pairs: PairBatch) -> list[ReferenceEntry]:
            logps = self.score(pairs)
            # What was scored in the place of no pair is nobody's.
            columns = [column[: len(pairs)].tolist() for column in logps[:4]]
            return [ReferenceEntry(*entry) for entry in zip(*columns, strict=True)]

        bar = tqdm(
            total=len(mine),
            desc=f"Reference log-probabilities ({name})",
            unit="pair",
            disable=not (self.show_progress and self.accelerator.is_main_process),
        )
        with bar:
            # A window bounds what is held as Python lists; within it rows are sorted by length.
            # The first rank has as many as any: all make its number of plans.
            for start in range(0, -(-len(missing) // num_ranks), 4096):
                part = mine[start : start + 4096]
                pairs = collate_pairs(dataset.select(part).to_list())["pairs"]
                part_keys = [keys[i] for i in part]
                compute_entries(pairs, self.plan(pairs), score, self.store, part_keys, progress=bar.update)
                fresh += [(key, self.store[key]) for key in part_keys]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            # Other nodes may not see this one's disk: results travel, and every store keeps them all.
            self.store.add(gather_object(fresh))

    def _broadcast(self, value: Any) -> Any:
        if self.accelerator.num_processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box)
        return box[0]


def _keys(dataset: Any) -> list[bytes]:
    keys = []
    columns = dataset.select_columns(list(IDS)).with_format("numpy")
    masks = _masks(dataset)
    for batch in columns.iter(batch_size=1000):
        for prompt, chosen, rejected in zip(*(batch[name] for name in IDS), strict=True):
            keys.append(pair_key(prompt, chosen, rejected, next(masks)))
    return keys


def _masks(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each pair's masks."""
    names = [name for name in MASKS if name in dataset.column_names]
    if not names:
        yield from repeat((None, None))
    for batch in dataset.select_columns(names).iter(batch_size=1000):
        nothing = repeat(None)
        yield from zip(*(batch.get(name, nothing) for name in MASKS), strict=False)
