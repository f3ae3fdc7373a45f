"""Models on the line through a reference and a policy: θ_c = θ_ref + c (θ - θ_ref), in place and one at a time.

c = 0 is the reference and c = 1 the policy, to the last bit; beyond 1 the line goes on. The interpolation of a model
with its fine-tuned self is Wortsman et al.'s (2022, arXiv:2109.01903), also beyond the fine-tuned one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.adapters import ModelFiles, free_unused_models, open_model
from dynamic_dpo.models.sources import is_same_model


class BetweenWeights:
    """Sets all weights of a model to those at a strength.

    Args:
        model: The policy; its weights are overwritten.
        reference: The reference's weights by the model's names, on the CPU.

    Attributes:
        model: The model, at the strength that was asked for last; the policy at first.

    Raises:
        ModelError: If names or shapes differ.
    """

    def __init__(self, model: Any, reference: dict[str, Tensor]) -> None:
        self.model = model
        self._policy = {name: weight.detach().cpu().clone() for name, weight in model.named_parameters()}
        self._reference = reference
        shapes, others = ({n: tuple(w.shape) for n, w in each.items()} for each in (self._policy, reference))
        if shapes != others:
            name = sorted(n for n in {*shapes, *others} if shapes.get(n) != others.get(n))[0]
            raise ModelError(
                f"policy and reference are not of one architecture: {name} is {shapes.get(name, 'missing')} in the "
                f"policy and {others.get(name, 'missing')} in the reference. Nothing lies between them"
            )

    def move_to(self, strength: float) -> None:
        """Give the model the weights at a strength."""
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                weight.copy_(between(self._reference[name], self._policy[name], strength))

    settle = move_to


class BetweenScales:
    """Scales a LoRA adapter whose reference is the model under it: the adapter's product is θ - θ_ref.

    Args:
        model: A `peft` model for which `is_plain_lora` holds.

    Attributes:
        model: The model, at the strength that was asked for last; the policy at first.
    """

    def __init__(self, model: Any) -> None:
        from peft.tuners.lora import LoraLayer

        self.model = model
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._scales = [dict(layer.scaling) for layer in self._layers]

    def move_to(self, strength: float) -> None:
        """Scale what the adapter adds; at 0 it is switched off, which adds nothing at all."""
        if strength == 0:
            self.model.base_model.disable_adapter_layers()
            return
        self.model.base_model.enable_adapter_layers()
        for layer, scales in zip(self._layers, self._scales, strict=True):
            # A product with 1 is exact.
            layer.scaling.update({name: scale * strength for name, scale in scales.items()})

    def settle(self, strength: float) -> None:
        """Write a strength into the adapter's own weights, so that it has it wherever it is loaded."""
        self.move_to(1.0)
        with torch.no_grad():
            for layer in self._layers:
                for part in (layer.lora_B, layer.lora_embedding_B):
                    for weight in part.parameters():
                        weight.mul_(strength)


def between(reference: Tensor, policy: Tensor, strength: float) -> Tensor:
    """Return the weights at a strength; its ends are the two themselves, signs of zeros included.

    Example:
        >>> between(torch.tensor([1.0]), torch.tensor([3.0]), 1.5)
        tensor([4.])
    """
    if strength == 0:
        return reference
    return policy if strength == 1 else torch.lerp(reference, policy, strength)


def open_between(
    policy: ModelFiles, reference: ModelFiles, *, device: str, dtype: str
) -> tuple[BetweenWeights | BetweenScales, Any]:
    """Load a policy and its reference as a model that can be moved between them, and the policy's tokenizer.

    A plain LoRA adapter on its reference is scaled. Of any other adapter the merged weights are used, and what is
    chosen is a whole model.

    Args:
        policy: From `find_model`.
        reference: The same.
        device: A torch device.
        dtype: Name of a torch type: of both models' weights.

    Raises:
        ModelError: If a model cannot be loaded, or the two are not of one architecture.
    """
    model, tokenizer = open_model(policy, device=device, dtype=dtype)
    on_base = reference.adapter is None and is_same_model(policy.base, reference.base)
    if policy.adapter is not None and on_base and is_plain_lora(model):
        return BetweenScales(model), tokenizer
    start, _ = open_model(reference, device="cpu", dtype=dtype)
    weights = {name: weight.detach() for name, weight in _merged(start).named_parameters()}
    del start
    moved = BetweenWeights(_merged(model), weights)
    free_unused_models()
    return moved, tokenizer


def is_plain_lora(model: Any) -> bool:
    """Return whether all that an adapter does is to add scaled products to its base's matrices."""
    more = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters")
    return all(
        str(getattr(config.peft_type, "value", config.peft_type)) == "LORA"
        and config.bias == "none"
        and not any(getattr(config, name, None) for name in more)
        for config in model.peft_config.values()
    )


def _merged(model: Any) -> Any:
    return model.merge_and_unload() if hasattr(model, "peft_config") else model
