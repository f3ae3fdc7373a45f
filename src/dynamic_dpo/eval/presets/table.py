"""The presets that an evaluation file can name: the only list of them.

A preset is a file ``NAME.yaml`` in this folder with keys of an evaluation file, and a line here. It names prompts,
outputs and questions of others by their file or their place on the hub; their texts are not copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

PRESETS: Final[dict[str, str]] = {
    "alpaca_eval_2": "AlpacaEval 2: 805 instructions, against GPT-4 Turbo (gpt4_1106_preview).",
    "arena_hard": "Arena-Hard 2.0: 500 hard prompts, against o3-mini (o3_mini_2025_01_31).",
    "arena_hard_0_1": "Arena-Hard 0.1: 500 prompts, against GPT-4 (gpt_4_0314).",
    "arena_hard_creative": "Arena-Hard 2.0: 250 prompts of creative writing, against Gemini (gemini_2_0_flash_001).",
    "mt_bench": "MT-Bench: 80 conversations of two turns, each answer graded from 1 to 10.",
}
"""Name to what it evaluates, in a sentence."""


def preset_file(name: str) -> Path:
    """Return the file of a preset.

    Args:
        name: A name in `PRESETS`.

    Example:
        >>> preset_file("alpaca_eval_2").name
        'alpaca_eval_2.yaml'
    """
    return Path(__file__).with_name(f"{name}.yaml")
