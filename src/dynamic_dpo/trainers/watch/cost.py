"""What a run costs: tokens and operations a second, shares of what its devices can do, memory, time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from transformers import TrainerCallback

from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods.base import Needs
from dynamic_dpo.runs.summary import peak_memory_bytes
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.ranks import gather_texts
from dynamic_dpo.trainers.watch.device_rates import (
    arithmetic_name,
    device_name,
    matmul_limit,
    nominal_flops,
)
from dynamic_dpo.trainers.watch.model_work import ModelWork, PairTokens

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepCost(TrainerCallback):  # type: ignore[misc]
    """Adds up what optimizer steps need and compute; what that is, those built on it say.

    Args:
        accelerator: The trainer's accelerator.

    Attributes:
        seconds: Seconds inside this process's optimizer steps: no evaluation, saving or reference pass.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.seconds = 0.0
        self._flops = 0.0
        self._tokens = PairTokens()
        self._positions = 0
        # Seconds, operations, needed tokens and computed positions at the last entry.
        self._logged = (0.0, 0.0, 0, 0)
        self._limit: float | None = None
        self._step_began = self._training_began = 0.0
        self._first_step = 0

    def end_count(self) -> None:
        """Count what is known once a step is done."""

    def dtype_of_weights(self) -> torch.dtype:
        """Return the arithmetic of a run that has no mixed precision."""
        raise NotImplementedError

    # ---- while training runs ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the run's clock; the first rank learns how fast its device multiplies."""
        if self.accelerator.is_main_process:
            self._limit = matmul_limit(self.accelerator.device, self._dtype())
        self._first_step, self._training_began = state.global_step, time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._step_began = time.perf_counter()

    def add(self, tokens: PairTokens, *, flops: float, positions: int) -> None:
        """Add what a part of a step needs, and the positions that are computed for it."""
        self._tokens += tokens
        self._flops += flops
        self._positions += positions

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock; on a GPU, once the step is really done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._step_began
        self.end_count()

    # ---- what is said of it ----

    def drain(self, state: Any) -> dict[str, float]:
        """Return what the steps since the last call have cost, over all ranks. Collective over ranks.

        Args:
            state: The trainer's state.
        """
        now = (self.seconds, self._flops, self._tokens.needed, self._positions)
        since = [value - before for value, before in zip(now, self._logged, strict=True)]
        self._logged = now
        rates = _rates(*self._over_ranks(since), limits=self._limits())
        if not rates:
            return {}
        steps = max(1, state.global_step - self._first_step)
        left = (time.perf_counter() - self._training_began) / steps * (state.max_steps - state.global_step)
        return {f"speed/{name}": value for name, value in (rates | {"seconds_left": left}).items()}

    def summary(self) -> dict[str, Any]:
        """Return what this process group's steps have cost, for the run's record. Collective over ranks."""
        sums = self._over_ranks([self.seconds, self._flops, self._tokens.needed, self._positions])
        names = gather_texts(self.accelerator, device_name(self.accelerator.device))
        mine = torch.tensor([peak_memory_bytes()], dtype=torch.int64, device=self.accelerator.device)
        peaks = self.accelerator.gather(mine).tolist() if len(names) > 1 else mine.tolist()
        _, flops, needed, computed = sums
        return {
            "needed_tokens": int(needed),
            "computed_tokens": int(computed),
            "model_flops": flops,
            "rates": _rates(*sums, limits=self._limits()),
            "device": names[0],
            "arithmetic": arithmetic_name(self._dtype()),
            "device_limits_tflop_per_second": {
                name: limit / 1e12 / len(names) for name, limit in self._limits().items()
            },
            "peak_memory_bytes_by_device": {
                f"rank {rank}: {name}": peak
                for rank, (name, peak) in enumerate(zip(names, peaks, strict=True))
            },
        }

    def _over_ranks(self, values: list[float]) -> list[float]:
        """Return seconds as they are here, and the sums of operations, tokens and positions."""
        if self.accelerator.num_processes == 1:
            return values
        mine = torch.tensor([values], dtype=torch.float64, device=self.accelerator.device)
        return [values[0], *self.accelerator.gather(mine).sum(0).tolist()[1:]]

    def _limits(self) -> Mapping[str, float]:
        """Return what all devices together can do, as far as it is known."""
        nominal = nominal_flops(device_name(self.accelerator.device), arithmetic_name(self._dtype()))
        known = {"matmul_limit": self._limit, "nominal_peak": nominal}
        ranks = self.accelerator.num_processes
        return {name: limit * ranks for name, limit in known.items() if limit is not None}

    def _dtype(self) -> torch.dtype:
        return _DTYPES.get(self.accelerator.mixed_precision) or self.dtype_of_weights()


class RunCost(StepCost):
    """What steps on pairs cost, on numbers that the host knows: nothing waits for it.

    Args:
        policy: The run's models, whose scorers count the positions that they compute.
        needs: What the method asks for: it says how often a step passes through the models.
        accelerator: The trainer's accelerator.
    """

    def __init__(self, policy: PolicyAndReference, needs: Needs, accelerator: Any) -> None:
        super().__init__(accelerator)
        self.policy = policy
        self.needs = needs
        self._positions_before = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._positions_before = self.policy.positions_computed
        super().on_step_begin(args, state, control, **kwargs)

    def count(self, pairs: PairBatch) -> None:
        """Count the pairs of this rank's share of a step."""
        tokens = PairTokens.of(pairs)
        policy, reference = self._works
        # A method that reads a batch before its losses passes through all of it twice.
        beside = self.needs.live_reference + self.policy.moves_reference
        flops = policy.training_flops(tokens)
        flops += self.needs.batch_evidence * policy.forward_flops(tokens)
        flops += beside * (1 + self.needs.batch_evidence) * reference.forward_flops(tokens)
        self.add(tokens, flops=flops, positions=0)

    def end_count(self) -> None:
        """Count the positions that the step has computed."""
        computed = self.policy.positions_computed - self._positions_before
        self.add(PairTokens(), flops=0.0, positions=computed)

    def dtype_of_weights(self) -> torch.dtype:
        """Return the arithmetic of the policy's scorer."""
        return self.policy.scorer.dtype

    @cached_property
    def _works(self) -> tuple[ModelWork, ModelWork]:
        """What policy and reference are multiplied with."""
        policy, reference = self.policy.model, self.policy.reference_model
        return ModelWork.of(policy), ModelWork.of(policy if reference is None else reference)


def _rates(
    seconds: float, flops: float, needed: float, computed: float, *, limits: Mapping[str, float]
) -> dict[str, float]:
    if not seconds or not needed:
        return {}
    rates = {
        "needed_tokens_per_second": needed / seconds,
        "computed_tokens_per_second": computed / seconds,
        "tflop_per_second": flops / seconds / 1e12,
    }
    return rates | {f"share_of_{name}": flops / seconds / limit for name, limit in limits.items()}
