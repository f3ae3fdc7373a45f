"""The names of what a training run leaves in its folder, each stated once for those who write it and who read it.

What the preparation of data leaves beside it (``data_report.json``, ``quarantine.jsonl``) is named by its writer,
`dynamic_dpo.data.ledger`; what else a checkpoint holds by the Hugging Face trainer.
"""

from __future__ import annotations

from typing import Final

CONFIG: Final = "config.yaml"
"""The resolved configuration."""

SUMMARY: Final = "run_summary.json"
"""The record of a run that came to its end."""

DEBUG_FOLDER: Final = "debug"
"""Samples of what the model really saw."""

MARGIN_LOG_FOLDER: Final = "logs/margins"
"""The margin log, where no other folder is asked for."""

MARGINS: Final = "margins.jsonl"
"""In the margin log: statistics of the margins, one line a controller update."""

CONTROLLER: Final = "controller.jsonl"
"""In the margin log: the method's reading, one line a controller update."""

ALARMS: Final = "raised_alarms.jsonl"
"""The alarms that the run's log has raised, one a line."""

SAMPLES: Final = "samples.jsonl"
"""What the policy wrote for fixed prompts while it was trained, one line a prompt and time."""

CHECKPOINT_PREFIX: Final = "checkpoint-"
"""A checkpoint's folder is called this and the number of its step, as the Hugging Face trainer has it."""

TRAINER_STATE: Final = "trainer_state.json"
"""In a checkpoint, and in the folder of a run that was saved: the Hugging Face trainer's state and log."""

CONTROLLER_STATE: Final = "controller_state.json"
"""In a checkpoint: the method's state, and what else the Hugging Face trainer would forget."""

REFERENCE_WEIGHTS: Final = "reference_model/weights.safetensors"
"""In a checkpoint of a run whose reference follows the policy: the reference's weights."""

BEST_WEIGHTS: Final = "best/weights.safetensors"
"""In the folder of a run that keeps its best weights, while it goes on, and in its checkpoints: those weights."""

LOG_STATE: Final = "log_state.json"
"""In a checkpoint of a fine-tuning: what its next log entries are made of."""

STRENGTH: Final = "strength.json"
"""The curve over strengths, and which one was chosen."""

STRENGTH_POINTS: Final = "strength_points.jsonl"
"""Its points as they were scored, one line each."""

STRENGTH_PAGE: Final = "strength.html"
"""The page about it."""

REPORT: Final = "report.html"
"""The page about a run."""

PLOTS_FOLDER: Final = "plots"
"""The pictures of that page."""
