"""A whole loop in small: a tiny model, prompts of a few words, a function as scorer, stages in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamic_dpo.cli import evaluate, rollout, train_dpo
from dynamic_dpo.cli.build_iteration import build_plan
from dynamic_dpo.config import dump_yaml, get_loop_config
from dynamic_dpo.loops.plan import LoopPlan, Stage
from dynamic_dpo.utils.files import write_text
from helpers_rollouts import write_prompts
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ 'w90 ' if m['role'] == 'user' else 'w91 ' }}{{ m['content'] }}"
    "{{ ' </s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}w91{% endif %}"
)
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "rollout": rollout.main,
    "train": train_dpo.main,
    "evaluate": evaluate.main,
}


def early_words(text: str) -> float:
    """The scorer: answers of words with small numbers are better."""
    return -sum(int(word[1:]) for word in text.split() if word[1:].isdigit()) / 100


def save_model(folder: Path) -> str:
    tiny_llama(seed=3).save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


def loop_settings(folder: Path, model: str, **iterate: Any) -> dict[str, Any]:
    """Return the file of a loop over prompts that are written beside its folder."""
    prompts = write_prompts(folder / "prompts.jsonl", [f"w{n} w{n + 1}" for n in range(12)])
    held_out = write_prompts(folder / "held-out.jsonl", [f"w{n} w{n + 2}" for n in range(6)])
    sampling = {"max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0, "device": "cpu"}
    return {
        "policy_name": model,
        "precision": "fp32",
        "dataset": {"chat_template": True, "val_ratio": 0, "max_len": 64},
        "rollout": {
            **sampling,
            "prompts": {"name": str(prompts), "split": "train"},
            "limit": 4,
            "responses_per_prompt": 3,
            "batch_size": 12,
            "judge": "function",
            "function": "helpers_loops:early_words",
            "filters": {"truncated": False},
            "pairs": {"rule": "all", "near_identical": None},
        },
        "dpo_training": {
            "epochs": 1,
            "batch_size": 2,
            "gradient_accumulation": 1,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "eval_steps": None,
            "save_steps": 2,
            "use_cpu": True,
        },
        "beta_update": {"alpha": 0.1},
        "risk_test": {"beta_warmup": 1, "delta": 0.5},
        "iterate": {
            "rounds": 2,
            "output_dir": str(folder / "loop"),
            "stop_when_even": False,
            **iterate,
        },
        "evaluation": {
            "dataset": {"name": str(held_out), "split": "train"},
            "generation": {**sampling, "batch_size": 6},
            "judge": {"kind": "function", "function": "helpers_loops:early_words"},
            "statistics": {"bootstrap": 100},
        },
    }


def in_this_process(stage: Stage) -> int:
    path = write_text(stage.folder.parent / f"{stage.name}.yaml", dump_yaml(stage.settings))
    return COMMANDS[stage.name](["--config", str(path)])


def plan_of(settings: dict[str, Any], run: Callable[[Stage], int] = in_this_process) -> LoopPlan:
    return replace(build_plan(get_loop_config(settings)), run=run)
