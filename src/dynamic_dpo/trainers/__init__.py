"""Trainers on the Hugging Face stack."""

from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
from dynamic_dpo.trainers.risk_dpo_trainer import RiskBetaDPOConfig, RiskBetaDPOTrainer

__all__ = ["PreferenceTrainer", "RiskBetaDPOConfig", "RiskBetaDPOTrainer"]
