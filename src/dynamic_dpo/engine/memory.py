"""What a training needs of each GPU's memory and the host's, as lines of arithmetic that a reader can check by hand.

An estimate from a model's sizes and the way of training; it looks at no machine. What an allocator loses to
fragments, and what libraries keep for themselves, is not in it: leave a tenth free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dynamic_dpo.engine.head import KEPT_BYTES
from dynamic_dpo.engine.model_shape import ModelShape, Size, count, largest_shard
from dynamic_dpo.engine.token_budget import EAGER, LEAN
from dynamic_dpo.errors import ConfigError

GIB = 2**30
# NF4 keeps 4 bits a weight, an 8-bit scale for each 64 and a float32 for each 256 of those scales.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True)
class TrainingShape:
    """How a model is trained.

    Attributes:
        gpus: GPUs over all nodes.
        gpus_per_node: Most GPUs of one machine.
        sharding: ``ddp``: each GPU holds everything; ``fsdp``: weights, gradients and optimizer are spread.
        adapter: ``none`` trains all weights; ``lora`` adapters; ``qlora`` adapters over 4-bit weights.
        rank: Rank of the adapters.
        frozen: Number format of the weights under LoRA's adapters; ``None``: that of ``precision``, as the commands
            load them. Trained weights are always float32.
        precision: Of the arithmetic.
        tokens: Tokens in a micro-batch on one GPU, ``engine.tokens_per_microbatch``.
        checkpointing: Whether activations are recomputed in the backward pass.
        offload: Whether activations wait for it in the host's memory.
        head_chunk: Positions whose logits exist at a time.
        reference: ``stored``: its log-probabilities were computed before, no model is kept; ``live``: a model of the
            same size stays, as methods with ``needs.live_reference`` want.
    """

    gpus: int = 1
    gpus_per_node: int = 8
    sharding: Literal["ddp", "fsdp"] = "ddp"
    adapter: Literal["none", "lora", "qlora"] = "none"
    rank: int = 16
    frozen: Literal["bf16", "fp32"] | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    tokens: int = 4096
    checkpointing: bool = False
    offload: bool = False
    head_chunk: int = 256
    reference: Literal["stored", "live"] = "stored"

    def __post_init__(self) -> None:
        for name in ("gpus", "gpus_per_node", "rank", "tokens", "head_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (self.adapter, self.sharding) == ("qlora", "fsdp"):
            raise ConfigError(
                "4-bit weights are not sharded here: use sharding ddp with qlora, or lora with fsdp"
            )
        if self.frozen == "bf16" and self.adapter != "lora":
            raise ConfigError(
                f"frozen weights of bf16 are those under LoRA's adapters, and adapter is {self.adapter!r}: trained "
                "weights are float32, and 4-bit ones have a format of their own"
            )

    @property
    def is_sharded(self) -> bool:
        """Whether there is anything to spread."""
        return self.sharding == "fsdp" and self.gpus > 1

    @property
    def arithmetic_bytes(self) -> int:
        """Bytes of a number that is computed with."""
        return 2 if self.precision == "bf16" else 4

    @property
    def frozen_bytes(self) -> int:
        """Bytes of a weight outside the adapters."""
        return 2 if self.adapter == "lora" and (self.frozen or self.precision) == "bf16" else 4

    @property
    def processes(self) -> int:
        """Processes of the first node, one a GPU."""
        return min(self.gpus, self.gpus_per_node)


class MemoryLine(NamedTuple):
    """One part of a memory: what it is, the arithmetic, the bytes."""

    name: str
    arithmetic: str
    bytes: int


def memory_lines(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """Return what the fullest GPU holds at the peak of a step, part by part.

    Example:
        >>> from dynamic_dpo.engine.model_shape import shape_of
        >>> lines = memory_lines(shape_of("1b"), TrainingShape(precision="fp32"))
        >>> [line.name for line in lines]
        ['weights', 'gradients', 'Adam', 'activations', 'logits']
        >>> lines[2].arithmetic, lines[2].bytes
        ('1,235,814,400 trained × 8 B', 9886515200)
    """
    lines = [*_held(model, training), *_while_used(model, training), *_passing(model, training)]
    return [line for line in lines if line.bytes]


def host_lines(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """Return what the processes of the first node hold in the host's memory, part by part.

    Loading and saving are moments that never meet. Neither the processes themselves nor files mapped into memory (a
    checkpoint, the prepared rows) are in it.
    """
    lines = []
    whole = f"{model.parameters:,} × {training.frozen_bytes} B"
    if training.adapter != "qlora":
        # Under FSDP one process loads and deals out; otherwise each loads what it then moves to its GPU.
        loading = 1 if training.is_sharded else training.processes
        is_copied = training.adapter == "none" or model.given is not None
        models = 2 if training.reference == "live" and is_copied else 1
        times = "".join(
            f" × {number} {what}"
            for number, what in ((models, "models"), (loading, "processes"))
            if number > 1
        )
        size = model.parameters * training.frozen_bytes * models * loading
        lines.append(MemoryLine("loading", whole + times, size))
    if training.adapter == "none":
        lines.append(MemoryLine("saving", f"{whole} on one process", model.parameters * 4))
    else:
        adapter = count(model.adapter(training.rank))
        lines.append(MemoryLine("saving", f"{adapter:,} of the adapters × 4 B on one process", adapter * 4))
    if training.offload:
        kept = model.hidden * model.layers if training.checkpointing else model.layers * _layer(model)[0]
        vectors = f"{model.layers} × " + (f"{model.hidden:,}" if training.checkpointing else _layer(model)[1])
        size = training.tokens * kept * training.arithmetic_bytes
        lines.append(
            MemoryLine(
                "activations",
                f"{training.tokens:,} tokens × {vectors} × {training.arithmetic_bytes} B"
                + (f" × {training.processes} processes" if training.processes > 1 else ""),
                size * training.processes,
            )
        )
    return lines


def host_peak(lines: Iterable[MemoryLine]) -> int:
    """Return the most that lines of `host_lines` come to at one time."""
    held = {line.name: line.bytes for line in lines}
    return max(held.pop("loading", 0), held.pop("saving", 0) + sum(held.values()))


def _held(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """What stays from step to step: spread over the GPUs by FSDP, whole on each by DDP."""
    adapter = () if training.adapter == "none" else model.adapter(training.rank)
    trained = adapter or model.tensors

    def line(name: str, sizes: tuple[Size, ...], what: str, size: int) -> MemoryLine:
        total = count(sizes)
        if not training.is_sharded:
            return MemoryLine(name, f"{total:,} {what}× {size} B", total * size)
        held = largest_shard(sizes, training.gpus)
        if held * training.gpus == total:
            return MemoryLine(name, f"{total:,} {what}× {size} B / {training.gpus} GPUs", held * size)
        # Rows are dealt out whole: the first GPU has the most.
        return MemoryLine(name, f"{held:,} of {total:,} {what}× {size} B", held * size)

    if training.adapter == "qlora":
        rest = model.parameters - model.in_linear
        packed = int(model.in_linear * NF4_BITS / 8)
        arithmetic = f"{model.in_linear:,} × {NF4_BITS:.3f} bits + {rest:,} × 2 B"
        lines = [MemoryLine("weights", arithmetic, packed + 2 * rest)]
    else:
        lines = [line("weights", model.tensors, "", training.frozen_bytes)]
    if adapter:
        which = f"of rank {training.rank} " if model.given is None else "given "
        lines.append(line("adapters", adapter, which, 4))
    lines += [line("gradients", trained, "trained ", 4), line("Adam", trained, "trained ", 8)]
    if training.sharding == "ddp" and training.gpus > 1:
        lines.append(line("DDP's buckets", trained, "trained ", 4))
    if training.reference == "live" and (not adapter or model.given is not None):
        # With fresh adapters the reference is the same model with the adapters off.
        lines.append(line("reference", model.tensors, "", training.frozen_bytes))
    return lines


def _while_used(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """Copies of weights, and gradients on their way, that exist while they are used."""
    size = training.arithmetic_bytes
    if training.is_sharded:
        # One layer computes while the next is fetched. A gradient leaves its layer in the arithmetic's format, and is
        # summed over the GPUs in float32.
        largest = max(model.unit, model.kept)
        gathered = MemoryLine(
            "gathered weights",
            f"(2 layers of {model.unit:,} + head of {model.kept:,}) × {size} B",
            (2 * model.unit + model.kept) * size,
        )
        if training.adapter != "none":
            return [gathered]
        return [
            gathered,
            MemoryLine("summed gradients", f"{largest:,} × ({size} + 4) B", largest * (size + 4)),
        ]
    if training.precision == "bf16" and training.adapter != "qlora":
        # Autocast keeps the copy of a weight it has made for the length of a forward pass, if the weight is trained.
        trained = model.parameters if training.adapter == "none" else count(model.adapter(training.rank))
        return [MemoryLine("bf16 copies", f"{trained:,} trained × 2 B", trained * 2)]
    return []


def _layer(model: ModelShape) -> tuple[int, str]:
    """Return the numbers that one token leaves in one layer, and how they are counted."""
    vectors = LEAN if model.lean else EAGER
    return (
        vectors.hidden * model.hidden + vectors.inner * model.inner,
        f"({vectors.hidden} × {model.hidden:,} + {vectors.inner} × {model.inner:,})",
    )


def _passing(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """What a micro-batch leaves for its backward pass; no part of it depends on the pairs of a step."""
    layer, one_layer = _layer(model)
    if training.offload:
        # One layer computes while another one's travel.
        token, arithmetic = 2 * layer, f"2 × {one_layer}"
    elif training.checkpointing:
        token = layer + model.layers * model.hidden
        arithmetic = f"({one_layer} + {model.layers} × {model.hidden:,})"
    else:
        token, arithmetic = model.layers * layer, f"{model.layers} × {one_layer}"
    size = training.arithmetic_bytes
    activations = MemoryLine(
        "activations", f"{training.tokens:,} tokens × {arithmetic} × {size} B", training.tokens * token * size
    )
    # Logits, their softmax and their gradient, in float32, and what the head keeps for backward at most.
    logits = MemoryLine(
        "logits",
        f"{training.head_chunk:,} positions × {model.vocabulary:,} × 3 × 4 B + {KEPT_BYTES:,} B",
        training.head_chunk * model.vocabulary * 12 + KEPT_BYTES,
    )
    return [activations, logits]
