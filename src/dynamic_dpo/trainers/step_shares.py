"""How the pairs of an optimizer step are shared out over ranks: in the order of one rank, none of them twice.

accelerate hands out whole batches and fills up the last ones of an epoch with pairs from its beginning; a run on
several ranks would then train other steps than one on a single rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler


class StepShares(BatchSampler):
    """This rank's share of each optimizer step: of each of its controller batches neighbours in the sampler's order.

    Where a batch does not divide evenly some ranks get one more; where it has fewer pairs than there are ranks, some
    get none of it.

    Args:
        sampler: The order of the data, the same on all ranks.
        batch_size: Pairs of a full step on one rank.
        drop_last: Whether a last step that is not full is left out.
        controller_batch: Pairs of a full controller batch on one rank.
        rank: This rank.
        num_ranks: Ranks in all.

    Example:
        >>> shares = [StepShares(range(7), 2, False, controller_batch=2, rank=r, num_ranks=2) for r in range(2)]
        >>> list(shares[0]), list(shares[1])
        ([[0, 1], [4, 5]], [[2, 3], [6]])
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        drop_last: bool,
        *,
        controller_batch: int,
        rank: int,
        num_ranks: int,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.controller_batch = controller_batch
        self.rank = rank
        self.num_ranks = num_ranks

    def __iter__(self) -> Iterator[list[int]]:
        order = iter(self.sampler)
        full = self.batch_size * self.num_ranks
        while step := list(islice(order, full)):
            if self.drop_last and len(step) < full:
                return
            size = self.controller_batch * self.num_ranks
            batches = [step[start : start + size] for start in range(0, len(step), size)]
            yield [pair for batch in batches for pair in self._share(batch)]

    def _share(self, batch: list[int]) -> list[int]:
        first, last = (-(-len(batch) * rank // self.num_ranks) for rank in (self.rank, self.rank + 1))
        return batch[first:last]

    def __len__(self) -> int:
        full = self.batch_size * self.num_ranks
        order: Any = self.sampler
        count = len(order)
        return count // full if self.drop_last else -(-count // full)


def share_steps(loader: Any, *, controller_batch: int, rank: int, num_ranks: int) -> None:
    """Let a data loader that accelerate has prepared give out `StepShares`.

    One that gives out otherwise by the user's own settings (``split_batches``, ``dispatch_batches`` or
    ``even_batches`` of ``accelerator_config``) is left alone.
    """
    from accelerate.data_loader import BatchSamplerShard

    shares = loader.batch_sampler
    if num_ranks == 1 or not isinstance(shares, BatchSamplerShard) or shares.split_batches:
        return
    whole = shares.batch_sampler
    if not shares.even_batches or type(whole) is not BatchSampler:
        return
    shares.batch_sampler = StepShares(
        whole.sampler,
        whole.batch_size,
        whole.drop_last,
        controller_batch=controller_batch,
        rank=rank,
        num_ranks=num_ranks,
    )
    # What it hands on are this rank's batches already, of whatever length.
    shares.num_processes, shares.process_index = 1, 0
    shares.even_batches, shares.batch_size = False, None
