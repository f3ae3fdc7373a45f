"""Judging as a stage: questions, a ledger of what was answered, workers, and what it may cost."""
