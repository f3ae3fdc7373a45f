"""What can be changed about the loss of other methods: `adjusted.Adjusted`, by the settings of `ObjectiveConfig`."""

from __future__ import annotations

from dynamic_dpo.methods.objective.adjusted import Adjusted, adjusted, why_not_added
from dynamic_dpo.methods.objective.reference_sync import ReferenceSync
from dynamic_dpo.methods.objective.settings import ObjectiveConfig

__all__ = ["Adjusted", "ObjectiveConfig", "ReferenceSync", "adjusted", "why_not_added"]
