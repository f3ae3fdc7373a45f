"""Functions that score an output: a text in, a number out, higher is better.

`dynamic_dpo.eval.judges.function` finds them by their dotted path.
"""

from __future__ import annotations

import functools
from typing import Any

from dynamic_dpo.errors import JudgeError


def vader(text: str) -> float:
    """Return the sentiment of a text by VADER's lexicon.

    Args:
        text: English text.

    Returns:
        The compound score, from -1 (displeased) to 1 (pleased).

    Raises:
        JudgeError: If the package ``vaderSentiment`` is missing.

    Example:
        >>> vader("What a lovely day!") > 0 > vader("What a dreadful day!")
        True
    """
    score: float = _analyzer().polarity_scores(text)["compound"]
    return score


@functools.cache
def _analyzer() -> Any:
    """Return VADER, its lexicon read once."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError:
        raise JudgeError(
            "VADER needs the package vaderSentiment: pip install 'dynamic-dpo[quickstart]'"
        ) from None
    return SentimentIntensityAnalyzer()
