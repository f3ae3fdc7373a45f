"""What a training needs of each GPU's memory, as lines of arithmetic that a reader can check by hand.

An estimate from a Llama-shaped model's sizes and the way of training; it looks at no machine and loads nothing. What
an allocator loses to fragments, and what libraries keep for themselves, is not in it: leave a tenth free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from dynamic_dpo.engine.head import KEPT_BYTES
from dynamic_dpo.engine.token_budget import LEAN
from dynamic_dpo.errors import ConfigError

GIB = 2**30
# NF4 keeps 4 bits a weight, an 8-bit scale for each 64 and a float32 for each 256 of those scales.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-shaped causal language model.

    Attributes:
        hidden: Width of the residual stream.
        layers: Decoder layers.
        inner: Width inside an MLP.
        vocabulary: Tokens.
        key_value: Width of all key heads together, and of all value heads.
        tied: Whether input and output embeddings are one matrix.
    """

    hidden: int
    layers: int
    inner: int
    vocabulary: int
    key_value: int
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "inner", "vocabulary", "key_value"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def linear(self) -> int:
        """Parameters of the matrices inside the layers: queries, keys, values, output, and an MLP of three."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_value
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings, output included."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters.

        >>> SHAPES["8b"].parameters
        8030261248
        """
        return self.linear + self.embedding + self.hidden * (2 * self.layers + 1)

    def adapter(self, rank: int) -> int:
        """Return the parameters of LoRA adapters of a rank on every matrix inside the layers."""
        attention = 2 * (2 * self.hidden) + 2 * (self.hidden + self.key_value)
        return self.layers * rank * (attention + 3 * (self.hidden + self.inner))


# The published sizes of Llama 3.2 1B, Llama 3.1 8B and Llama 3.1 70B.
SHAPES = {
    "1b": ModelShape(hidden=2048, layers=16, inner=8192, vocabulary=128_256, key_value=512, tied=True),
    "8b": ModelShape(hidden=4096, layers=32, inner=14_336, vocabulary=128_256, key_value=1024),
    "70b": ModelShape(hidden=8192, layers=80, inner=28_672, vocabulary=128_256, key_value=1024),
}


@dataclass(frozen=True)
class TrainingShape:
    """How a model is trained.

    Attributes:
        gpus: GPUs over all nodes.
        sharding: ``ddp``: each GPU holds everything; ``fsdp``: weights, gradients and optimizer are spread.
        adapter: ``none`` trains all weights; ``lora`` adapters; ``qlora`` adapters over 4-bit weights.
        rank: Rank of the adapters.
        precision: Of the arithmetic. Weights stay in float32 under bf16, as ``train-dpo`` keeps them.
        tokens: Tokens in a micro-batch on one GPU, ``engine.tokens_per_microbatch``.
        checkpointing: Whether activations are recomputed in the backward pass.
        head_chunk: Positions whose logits exist at a time.
        reference: ``stored``: its log-probabilities were computed before, no model is kept; ``live``: a model of the
            same size stays, as methods with ``needs.live_reference`` want.
    """

    gpus: int = 1
    sharding: Literal["ddp", "fsdp"] = "ddp"
    adapter: Literal["none", "lora", "qlora"] = "none"
    rank: int = 16
    precision: Literal["bf16", "fp32"] = "bf16"
    tokens: int = 4096
    checkpointing: bool = False
    head_chunk: int = 256
    reference: Literal["stored", "live"] = "stored"

    def __post_init__(self) -> None:
        for name in ("gpus", "rank", "tokens", "head_chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (self.adapter, self.sharding) == ("qlora", "fsdp"):
            raise ConfigError(
                "4-bit weights are not sharded here: use sharding ddp with qlora, or lora with fsdp"
            )


class MemoryLine(NamedTuple):
    """One part of the memory of a GPU: what it is, the arithmetic, the bytes."""

    name: str
    arithmetic: str
    bytes: int


def memory_lines(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """Return what one GPU holds at the peak of a step, part by part.

    Example:
        >>> lines = memory_lines(SHAPES["1b"], TrainingShape(precision="fp32"))
        >>> [line.name for line in lines]
        ['weights', 'gradients', 'Adam', 'activations', 'logits']
        >>> lines[2].arithmetic, lines[2].bytes
        ('1,235,814,400 trained × 8 B', 9886515200)
    """
    lines = [*_held(model, training), *_gathered(model, training), *_passing(model, training)]
    return [line for line in lines if line.bytes]


def _held(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """What stays from step to step: spread over the GPUs by FSDP, whole on each by DDP."""
    share = training.gpus if training.sharding == "fsdp" else 1
    spread = f" / {share} GPUs" if share > 1 else ""
    trained = model.parameters if training.adapter == "none" else model.adapter(training.rank)

    def line(name: str, count: int, what: str, size: int) -> MemoryLine:
        return MemoryLine(name, f"{count:,} {what}× {size} B{spread}", count * size // share)

    if training.adapter == "qlora":
        rest = model.parameters - model.linear
        packed = int(model.linear * NF4_BITS / 8)
        arithmetic = f"{model.linear:,} × {NF4_BITS:.3f} bits + {rest:,} × 2 B"
        lines = [MemoryLine("weights", arithmetic, packed + 2 * rest)]
    else:
        lines = [line("weights", model.parameters, "", 4)]
    if training.adapter != "none":
        lines.append(line("adapters", trained, f"of rank {training.rank} ", 4))
    lines += [line("gradients", trained, "trained ", 4), line("Adam", trained, "trained ", 8)]
    if training.sharding == "ddp" and training.gpus > 1:
        lines.append(line("DDP's buckets", trained, "trained ", 4))
    if training.reference == "live" and training.adapter == "none":
        # With adapters the reference is the same model with the adapters off.
        lines.append(line("reference", model.parameters, "", 4))
    return lines


def _gathered(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """Copies of weights that exist while they are used."""
    if training.sharding == "fsdp" and training.gpus > 1:
        largest = max(model.linear // model.layers, model.vocabulary * model.hidden)
        return [MemoryLine("gathered weights", f"2 units of at most {largest:,} × 4 B", 2 * largest * 4)]
    if training.precision == "bf16" and training.adapter != "qlora":
        # Autocast keeps the copy of a weight it has made for the length of a forward pass, if the weight is trained.
        trained = model.parameters if training.adapter == "none" else model.adapter(training.rank)
        return [MemoryLine("bf16 copies", f"{trained:,} trained × 2 B", trained * 2)]
    return []


def _passing(model: ModelShape, training: TrainingShape) -> list[MemoryLine]:
    """What a micro-batch leaves for its backward pass; no part of it depends on the pairs of a step."""
    size = 2 if training.precision == "bf16" else 4
    layer = LEAN.hidden * model.hidden + LEAN.inner * model.inner
    one_layer = f"({LEAN.hidden} × {model.hidden:,} + {LEAN.inner} × {model.inner:,})"
    if training.checkpointing:
        token, arithmetic = (
            layer + model.layers * model.hidden,
            f"({one_layer} + {model.layers} × {model.hidden:,})",
        )
    else:
        token, arithmetic = model.layers * layer, f"{model.layers} × {one_layer}"
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
