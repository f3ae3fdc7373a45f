"""From rows to token ids: sources, preference pairs, tokenisation, splits.

Names are loaded when they are used, so importing the package does not load the datasets library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.data.conversations import prepare_sft as prepare_sft
    from dynamic_dpo.data.hh_dataset import (
        apply_chat_template_to_dataset as apply_chat_template_to_dataset,
    )
    from dynamic_dpo.data.hh_dataset import build_HH_dataset as build_HH_dataset
    from dynamic_dpo.data.hh_dataset import build_rollout_dataset as build_rollout_dataset
    from dynamic_dpo.data.preference import to_preference_pairs as to_preference_pairs
    from dynamic_dpo.data.prepare import PreparedPreferences as PreparedPreferences
    from dynamic_dpo.data.prepare import prepare_preferences as prepare_preferences
    from dynamic_dpo.data.sft_dataset import build_sft_dataset as build_sft_dataset
    from dynamic_dpo.data.sources import load_rows as load_rows
    from dynamic_dpo.data.split import split_by_prompt as split_by_prompt
    from dynamic_dpo.data.tldr_dataset import load_tldr_dataset as load_tldr_dataset
    from dynamic_dpo.data.tokenize import tokenize_pairs as tokenize_pairs

_HOMES = {
    "apply_chat_template_to_dataset": "hh_dataset",
    "build_HH_dataset": "hh_dataset",
    "build_rollout_dataset": "hh_dataset",
    "PreparedPreferences": "prepare",
    "prepare_preferences": "prepare",
    "prepare_sft": "conversations",
    "to_preference_pairs": "preference",
    "build_sft_dataset": "sft_dataset",
    "load_rows": "sources",
    "split_by_prompt": "split",
    "load_tldr_dataset": "tldr_dataset",
    "tokenize_pairs": "tokenize",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
