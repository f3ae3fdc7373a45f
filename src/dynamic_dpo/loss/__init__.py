"""Pure mathematics of preference losses and of the risk test.

``dpo_loss`` names both a module and its function; the package exports the function.
"""

from dynamic_dpo.loss.dpo_loss import (
    DPOLoss,
    compute_and_log_model_margin,
    compute_log_prob,
    dpo_loss,
    margin_compute,
)
from dynamic_dpo.loss.risk import (
    BetaUpdate,
    empirical_over_threshold_proportion,
    risk_test,
    update_beta,
)

__all__ = [
    "BetaUpdate",
    "DPOLoss",
    "compute_and_log_model_margin",
    "compute_log_prob",
    "dpo_loss",
    "empirical_over_threshold_proportion",
    "margin_compute",
    "risk_test",
    "update_beta",
]
