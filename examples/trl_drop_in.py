"""TRL's quick start for its `DPOTrainer`, with beta set by the risk controller.

Two lines differ from the script for TRL: where the trainer is imported from, and its name. The model, the preference
pairs (each a name on the hub, or a local folder) and every field of `trl.DPOConfig` are given in the command:

    python examples/trl_drop_in.py --model Qwen/Qwen3-0.6B --output_dir runs/drop-in --learning_rate 5e-7
"""

from dataclasses import dataclass

from datasets import load_dataset
from transformers import HfArgumentParser
from trl import DPOConfig

from dynamic_dpo import RiskBetaDPOTrainer


@dataclass
class Names:
    """What is trained, and on what."""

    model: str = "Qwen/Qwen3-0.6B"
    pairs: str = "trl-lib/ultrafeedback_binarized"


names, args = HfArgumentParser((Names, DPOConfig)).parse_args_into_dataclasses()

trainer = RiskBetaDPOTrainer(
    model=names.model,
    args=args,
    train_dataset=load_dataset(names.pairs, split="train"),
)
trainer.train()
