"""The numbers that AlpacaEval 2 publishes: the weighted win rate and its length-controlled form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamic_dpo.utils.lazy import lazy_names

if TYPE_CHECKING:
    from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import (
        Difficulties,
        read_difficulties,
        write_difficulties,
    )
    from dynamic_dpo.eval.statistics.alpaca_eval.numbers import (
        AlpacaEvalNumbers,
        AlpacaEvalTable,
        alpaca_eval_table,
    )
    from dynamic_dpo.eval.statistics.alpaca_eval.weighted import WeightedWinRate, weighted_win_rate

__all__ = [
    "AlpacaEvalNumbers",
    "AlpacaEvalTable",
    "Difficulties",
    "WeightedWinRate",
    "alpaca_eval_table",
    "read_difficulties",
    "weighted_win_rate",
    "write_difficulties",
]

_HOME = {
    "AlpacaEvalNumbers": "numbers",
    "AlpacaEvalTable": "numbers",
    "Difficulties": "difficulty_files",
    "WeightedWinRate": "weighted",
    "alpaca_eval_table": "numbers",
    "read_difficulties": "difficulty_files",
    "weighted_win_rate": "weighted",
    "write_difficulties": "difficulty_files",
}

__getattr__, __dir__ = lazy_names(__name__, _HOME)
