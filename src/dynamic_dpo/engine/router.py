"""The balancing loss of a mixture of experts: what keeps its router from sending every token to the same few.

Fedus et al. 2022, arXiv:2101.03961, equations 4 to 6, as each family of transformers computes it, over the
positions of the policy's rows without padding. Where completions share their prompt's row, its tokens count once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dynamic_dpo.engine.rows import Rows
from dynamic_dpo.errors import ConfigError

logger = logging.getLogger("dynamic_dpo")


class RouterLoss(NamedTuple):
    """How a model's balancing loss is computed, and its weight in the training loss.

    Attributes:
        coefficient: Factor on the loss, the configuration's ``router_aux_loss_coef``.
        function: The model family's own ``load_balancing_loss_func``.
        num_experts: Experts a layer.
        top_k: Experts a token is sent to.
    """

    coefficient: float
    function: Callable[..., Tensor]
    num_experts: int
    top_k: int

    def of(self, output: Any, rows: Rows) -> Tensor | None:
        """Return the loss of a base model's output, without the coefficient, shape []; ``None`` without experts."""
        if not output.router_logits:
            return None  # A family's model may have been made without.
        return self.function(output.router_logits, self.num_experts, self.top_k, rows.padding_mask())


def router_loss_of(model: Any, *, coefficient: float | None = None) -> RouterLoss | None:
    """Return the balancing loss of a model that has one, and say in the log whether it will be added.

    As in TRL, it is added wherever the model can return its router's logits and the coefficient is not 0.

    Args:
        model: A causal language model of transformers.
        coefficient: The weight; by default the configuration's ``router_aux_loss_coef``.

    Returns:
        The loss, or ``None`` for a model without one.

    Raises:
        ConfigError: If a weight is given and the model is no mixture of experts.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "output_router_logits"):
        if coefficient:
            raise ConfigError(
                f"router_aux_loss_coef={coefficient:g} weighs the balancing loss of a mixture of experts, and "
                f"{type(model).__name__} is none: leave it out"
            )
        return None
    name = type(model).__name__
    if coefficient is None:
        coefficient = float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0)
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    experts = _first(model, config, "num_experts", "num_local_experts")
    top_k = _first(model, config, "num_experts_per_tok", "top_k")
    if coefficient == 0:
        logger.info("%s: no balancing loss of its router, for router_aux_loss_coef is 0", name)
        return None
    if function is None or experts is None or top_k is None:
        logger.warning(
            "%s has router_aux_loss_coef=%g, but transformers has no balancing loss for it: none is added",
            name,
            coefficient,
        )
        return None
    logger.info(
        "%s: %g times the balancing loss of its router is added to the loss (router_aux_loss_coef in the model's "
        "configuration; 0 leaves it out)",
        name,
        coefficient,
    )
    return RouterLoss(coefficient, function, experts, top_k)


def _first(model: Any, config: Any, *names: str) -> int | None:
    values = (getattr(owner, name, None) for owner in (model, config) for name in names)
    return next((value for value in values if isinstance(value, int)), None)
