"""The promised door to the judge `GPT4Oracle`, which lives in ``judges.gpt4_oracle``."""

from __future__ import annotations

from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle, Judgement

__all__ = ["GPT4Oracle", "Judgement"]
