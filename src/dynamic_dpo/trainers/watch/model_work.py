"""The floating-point operations that training on pairs needs of a model: its matrix products, and its attention.

Counted is what the mathematics needs, as Chowdhery et al. (2022, https://arxiv.org/abs/2204.02311, appendix B)
count the model FLOPs of their utilisation: no padding, no prompt twice, nothing computed again for want of memory.
A multiply-add is two operations. A weight that tokens are multiplied with costs two of them a token forward, two
for the gradient of its input, and two for its own gradient if it is trained (6 N of Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, and 4 N under an adapter). A position that attends to another one costs 4
operations for each layer and unit of all heads' width forward, and twice that backward; only positions that may be
attended to count, and windows are taken for unlimited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.models.causal_lm import causal_lm
from dynamic_dpo.models.settings import layer_values


@dataclass(frozen=True)
class PairTokens:
    """What some pairs need computed.

    Attributes:
        needed: Positions: every prompt once, every completion without its last token, from which nothing follows.
        predicting: Positions whose output is needed; both first tokens are predicted from one.
        attended: Pairs of a position and one that it attends to, itself included.
    """

    needed: int = 0
    predicting: int = 0
    attended: int = 0

    @classmethod
    def of(cls, pairs: PairBatch) -> Self:
        """Count the tokens of pairs.

        Example:
            >>> PairTokens.of(PairBatch([[5, 6]], [[7, 8]], [[9, 10, 11]], [0]))
            PairTokens(needed=5, predicting=4, attended=13)
        """
        needed = predicting = attended = 0
        for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
            before = len(prompt)
            own = [len(chosen) - 1, len(rejected) - 1]
            needed += before + sum(own)
            predicting += 1 + sum(own)
            attended += before * (before + 1) // 2
            attended += sum(count * before + count * (count + 1) // 2 for count in own)
        return cls(needed, predicting, attended)

    def __add__(self, other: PairTokens) -> PairTokens:
        return PairTokens(
            self.needed + other.needed, self.predicting + other.predicting, self.attended + other.attended
        )


@dataclass(frozen=True)
class ModelWork:
    """What a model is multiplied with.

    Attributes:
        layers: Weights that every token meets below the output head; of experts those that a token is sent to.
        layers_trained: Those of them that are trained.
        head: Weights of the output head, which predicting positions alone meet.
        head_trained: Those of them that are trained.
        attention: Layers times the width of all their heads.
    """

    layers: float
    layers_trained: float
    head: float
    head_trained: float
    attention: float

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Read the sizes of a causal language model, quantised, sharded or with adapters as it may be."""
        lm = causal_lm(model)
        config = lm.config.get_text_config()
        head = lm.get_output_embeddings()
        in_head = {id(module) for module in head.modules()} if head is not None else set()
        share = _share_of_experts(config)
        sums = {"layers": [0.0, 0.0], "head": [0.0, 0.0]}
        for name, module in lm.named_modules():
            part = sums["head" if id(module) in in_head else "layers"]
            for weights, is_trained in _matrices(name, module):
                used = weights * (share if _is_expert(name) else 1.0)
                part[0] += used
                part[1] += used * is_trained
        return cls(
            layers=sums["layers"][0],
            layers_trained=sums["layers"][1],
            head=sums["head"][0],
            head_trained=sums["head"][1],
            attention=_attention_width(config),
        )

    def training_flops(self, tokens: PairTokens) -> float:
        """Return the operations of a forward and a backward pass over pairs.

        Example:
            >>> work = ModelWork(layers=12, layers_trained=12, head=28, head_trained=28, attention=0)
            >>> work.training_flops(PairTokens(needed=10, predicting=5))
            1560.0
        """
        return (
            (4.0 * self.layers + 2.0 * self.layers_trained) * tokens.needed
            + (4.0 * self.head + 2.0 * self.head_trained) * tokens.predicting
            + 12.0 * self.attention * tokens.attended
        )

    def forward_flops(self, tokens: PairTokens) -> float:
        """Return the operations of a forward pass alone.

        Example:
            >>> ModelWork(12, 12, 28, 28, attention=0).forward_flops(PairTokens(needed=10, predicting=5))
            520.0
        """
        return (
            2.0 * self.layers * tokens.needed
            + 2.0 * self.head * tokens.predicting
            + 4.0 * self.attention * tokens.attended
        )


def _matrices(name: str, module: nn.Module) -> list[tuple[int, bool]]:
    """Return the weights in each matrix of a module's own, and whether it is trained."""
    if "original_module" in name.split("."):  # What peft keeps beside the copy that is trained.
        return []
    if isinstance(module, nn.Linear):
        # Not the tensor: quantised weights are packed, sharded ones cut.
        return [(module.in_features * module.out_features, module.weight.requires_grad)]
    if isinstance(module, nn.Embedding):  # Rows of it are looked up.
        return []
    # Layers of other classes, routers, and all experts' matrices of one kind in a tensor.
    own = module.parameters(recurse=False)
    is_matrix = (2, 3) if _is_expert(name) else (2,)
    return [(weight.numel(), weight.requires_grad) for weight in own if weight.dim() in is_matrix]


def _is_expert(name: str) -> bool:
    return "experts" in name.split(".")


def _share_of_experts(config: Any) -> float:
    """Return the share of a layer's experts that a token is sent to."""
    counts = [
        value
        for name in ("num_local_experts", "num_experts", "n_routed_experts")
        for value in layer_values(config, name)
        if value
    ]
    chosen = [value for value in layer_values(config, "num_experts_per_tok") if value]
    return min(1.0, max(chosen) / max(counts)) if counts and chosen else 1.0


def _attention_width(config: Any) -> float:
    heads = [value for value in layer_values(config, "num_attention_heads") if value]
    if not heads:
        return 0.0
    number = sum(heads) / len(heads)
    widths = [value for value in layer_values(config, "head_dim") if value]
    width = sum(widths) / len(widths) if widths else config.hidden_size / number
    return float(config.num_hidden_layers * number * width)
