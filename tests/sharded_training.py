"""Short training runs of many kinds, on one rank or sharded over several, for `trainers/test_sharded_training.py`.

Usage: ``sharded_training.py FOLDER PAIRS_IN_STEP_OF_RANK CASE...``; each rank leaves what it saw, by case. The case
``CASE:CHECKPOINT`` goes on from another run's checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.methods import DPO, SFT, AOTUnpaired, BetaDPO, BetaDPOConfig, Risk, RiskConfig
from dynamic_dpo.methods.base import Control, LogitChunk, Needs, PairForward, TokenStatistic
from dynamic_dpo.methods.objective import Adjusted, ObjectiveConfig, ReferenceSync
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.utils.process_group import end_process, process_group
from tiny import VOCAB, random_pairs, tiny_gpt2, tiny_llama, tiny_qwen2, training_arguments, word_tokenizer

LONG = 100  # Of prompt, chosen and rejected: rows of up to 300 tokens.


class Bent(LlamaForCausalLM):
    """A model that does to its logits what nothing in its configuration says, so that all of them are made."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.1 * output.logits.tanh()
        return output


def bent() -> nn.Module:
    model = tiny_llama()
    model.__class__ = Bent
    return model


def soft_capped() -> nn.Module:
    """A model of windows and caps."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.2,
            attn_implementation="eager",
        )
    )


def adapter(*more: str, rank: int = 4) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=8, target_modules=["q_proj", "v_proj", *more], task_type="CAUSAL_LM")


def risk(scope: Any = "step", alpha: float = 0.3) -> Risk:
    return Risk(RiskConfig(scope=scope, warmup_steps=2, alpha=alpha, delta=0.25), pairs_per_update=8)


def gap(chunk: LogitChunk) -> Tensor:
    """Return how far the policy's logits are from the reference's, by position."""
    assert chunk.reference is not None
    return (chunk.policy - chunk.reference).square().mean(-1)


class GapDPO(DPO):
    """DPO whose losses weigh more the further the policy has gone: it reads the reference's logits."""

    needs = Needs(statistics=(TokenStatistic("gap", gap, live_reference=True),))

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        return super().losses(forward, control) * (1 + forward.statistics["gap"].sum(1))


# 21 pairs in steps of 8: the last step of an epoch has 5. What is not said is that of the first case.
CASES: dict[str, dict[str, Any]] = {
    "full": {
        "model": tiny_llama,
        "method": risk,
        "arguments": {"max_steps": 20, "max_grad_norm": 0.5, "save_strategy": "steps", "save_steps": 10},
    },
    # One row a matrix: the second rank's part of it is empty.
    "lora": {
        "peft_config": lambda: adapter(rank=1),
        # Beta multiplies the rounding of log-probabilities, which an adapter leaves where losses are not yet 0.
        "method": lambda: risk(alpha=0.05),
        "arguments": {"max_steps": 20, "max_grad_norm": 0.0},
    },
    "tied": {"model": tiny_qwen2, "arguments": {"max_steps": 20}},
    "reference": {"ref_model": lambda: tiny_llama(seed=9), "arguments": {"max_steps": 20}},
    # 17 pairs: the last step has one, and the second rank none; controller batches are smaller than steps.
    "one_left": {
        "model": tiny_gpt2,
        "num_pairs": 17,
        "longest": 6,
        "method": lambda: risk("micro"),
        "arguments": {"optim": "sgd", "learning_rate": 0.1, "gradient_accumulation_steps": 2},
    },
    "live": {"method": GapDPO, "arguments": {}},
    "live_lora": {"method": GapDPO, "peft_config": lambda: adapter("lm_head"), "arguments": {}},
    # Not the policy's own start, whose first margins are rounding: pairs would be chosen by that.
    "batch_evidence": {
        "ref_model": lambda: tiny_llama(seed=9),
        "method": lambda: BetaDPO(BetaDPOConfig(keep_share=0.5), scope="step"),
        "num_pairs": 17,
        "arguments": {},
    },
    # Pairs that hang together over both ranks, and a mean over both ranks' tokens.
    "coupled": {
        "ref_model": lambda: tiny_llama(seed=9),
        "method": lambda: Adjusted(AOTUnpaired(scope="step"), ObjectiveConfig(ld_alpha=0.5), [(SFT(), 0.3)]),
        "num_pairs": 17,
        "arguments": {},
    },
    # A reference of shards that follows a policy of shards, with tied weights.
    "moving": {
        "model": tiny_qwen2,
        "reference_sync": ReferenceSync(steps=2, mixup_alpha=0.3),
        "arguments": {"save_strategy": "steps", "save_steps": 3},
    },
    "soft_capped": {"model": soft_capped, "arguments": {"activation_checkpointing": True}},
    "bent": {"model": bent, "arguments": {"max_steps": 3}},
    "bf16": {
        "longest": LONG,
        "engine": {"tokens_per_microbatch": 700},
        "arguments": {"bf16": True, "max_steps": 3},
    },
    "bf16_lora": {
        "longest": LONG,
        "peft_config": adapter,
        "engine": {"tokens_per_microbatch": 700, "layout": "shared"},
        "arguments": {"bf16": True, "max_steps": 3},
    },
}


class Listener:
    """Notes the policy's log-probabilities of training pairs as they reach the method, by step."""

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.seen: list[dict[str, Any]] = []
        policy, forward = trainer.policy, trainer.policy.forward

        def listen(model: Any, pairs: Any, needs: Any) -> Any:
            answer = forward(model, pairs, needs)
            if model.training and pairs.rows[0] >= 0:
                margins = answer.margins.detach()
                self.seen.append(
                    {
                        "step": trainer.state.global_step,
                        "dtype": str(margins.dtype),
                        "reference_dtype": str(answer.ref_chosen_logps.dtype),
                        "logps": answer.policy_chosen_logps.tolist(),
                        "reference": answer.ref_chosen_logps.tolist(),
                        "rows": list(pairs.rows),
                        "margins": margins.tolist(),
                        "tokens": (answer.chosen_lengths + answer.rejected_lengths).tolist(),
                    }
                )
            return answer

        policy.forward = listen  # type: ignore[method-assign]


def build(name: str, folder: Path, pairs_of_rank: int, **arguments: Any) -> PreferenceTrainer:
    """Return the trainer of a case."""
    case = {**CASES["full"], "num_pairs": 21, "longest": 12, **CASES[name]}
    longest = case["longest"]
    settings = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "per_device_eval_batch_size": 3,
        **case["arguments"],
        **arguments,
    }
    accumulation = settings.get("gradient_accumulation_steps", 1)
    torch.manual_seed(0)
    return PreferenceTrainer(
        case["model"](),
        case["ref_model"]() if "ref_model" in case else None,
        training_arguments(
            folder / name, per_device_train_batch_size=pairs_of_rank // accumulation, **settings
        ),
        random_pairs(case["num_pairs"], longest=longest),
        # Of 7 pairs in batches of 3 one rank has 4, the other 3, in other numbers of passes.
        random_pairs(7, seed=3, longest=longest),
        word_tokenizer(),
        peft_config=case["peft_config"]() if "peft_config" in case else None,
        method=case["method"](),
        reference_sync=case.get("reference_sync"),
        engine=EngineConfig(
            **{"tokens_per_microbatch": 60, "head_chunk": 8, **case.get("engine", {})},
            # Of its own: two cases have the same weights and another way to logits.
            reference_dir=str(folder / "reference" / name),
        ),
    )


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights, gathered where they are sharded."""
    return {
        name: (values.full_tensor() if hasattr(values, "full_tensor") else values).clone()
        for name, values in model.state_dict().items()
    }


def outcome(trainer: PreferenceTrainer) -> dict[str, Any]:
    """Return what a run has come to, as JSON types."""
    history = trainer.state.log_history
    return {
        "sharded": type(next(trainer.model.parameters())).__name__ == "DTensor",
        "parameter_dtype": str(next(trainer.model.parameters()).dtype),
        "layout": trainer.policy.scorer.layout,
        "separate_head": trainer.policy.scorer.separate_head,
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "norms": [float(entry["grad_norm"]) for entry in history if "loss" in entry],
        "evaluations": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "pairs_seen": trainer.num_pairs_seen,
        "updates": trainer.num_updates,
        "state": trainer.method.state_dict(),
    }


def main(folder: Path, pairs_of_rank: int, names: list[str]) -> None:
    results = {}
    for case in names:
        name, _, checkpoint = case.partition(":")
        trainer = build(name, folder / "resumed" if checkpoint else folder, pairs_of_rank)
        key = f"{name}_resumed" if checkpoint else name
        listener = Listener(trainer)
        before = trainer.evaluate() if name == "full" else None
        trainer.train(resume_from_checkpoint=checkpoint or None)
        results[key] = outcome(trainer) | {"seen": listener.seen if "bf16" in name else None}
        if before is not None:
            results[key]["before"] = before["eval_loss"]
        weights = whole_weights(trainer.model)
        rank = trainer.args.process_index
        if rank == 0:
            torch.save(weights, folder / f"{key}.pt")
    (folder / f"result_{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(CASES))
    end_process(0)
