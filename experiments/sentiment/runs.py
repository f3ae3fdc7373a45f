"""One result: a training by ``train-dpo``'s own code, the model's answers to unseen prompts, what they are worth."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from experiments.sentiment import world
from experiments.sentiment.arms import Arm

from dynamic_dpo.utils.files import write_json

if TYPE_CHECKING:
    from dynamic_dpo.eval.generate.batched import Generation

# Raised when what a cell computes changes, so that no old line passes for a new one.
VERSION = 1
START = "before training"
# A step is 16 pairs in two controller batches; 40 steps in each condition.
SHARED = {
    "precision": "fp32",
    "dataset.generated_data": True,
    "dataset.subset": "train",
    "dataset.chat_template": True,
    "dataset.max_len": 160,
    "dpo_training.batch_size": 8,
    "dpo_training.gradient_accumulation": 2,
    "dpo_training.warmup_steps": 4,
    "dpo_training.max_grad_norm": 10,
    "dpo_training.lr_scheduler_type": "linear",
    "dpo_training.log_steps": 1,
    "dpo_training.eval_steps": 20,
    "dpo_training.save_steps": None,
    "dpo_training.save_strategy": "no",
}


@dataclass(frozen=True)
class Cell:
    """What one line of the record is about.

    Attributes:
        arm: How is trained; ``None``: not at all, the model before training.
        task: The task.
        condition: On what.
        seed: Of samples, pairs, their order and flips, and of the answers that are measured.
        learning_rate: The rate at its highest.
    """

    arm: Arm | None
    task: world.Task
    condition: world.Condition
    seed: int
    learning_rate: float

    @property
    def name(self) -> str:
        """What a line calls its arm."""
        return START if self.arm is None else self.arm.name

    @property
    def title(self) -> str:
        """What progress calls it."""
        rate = "" if self.arm is None else f", rate {self.learning_rate:g}"
        return f"{self.name}: {self.condition.name}, seed {self.seed}{rate}"

    @property
    def key(self) -> str:
        """A hash of everything that decides the result."""
        if self.arm is None:
            said = {"seed": self.seed, "task": asdict(self.task)}
        else:
            said = {
                "arm": asdict(self.arm),
                "task": asdict(self.task),
                "condition": asdict(self.condition),
                "seed": self.seed,
                "learning_rate": self.learning_rate,
                "shared": SHARED,
                "pairs": [world.PAIRS_PER_PROMPT, world.LEAST_GAP],
            }
        return hashlib.sha256(json.dumps([VERSION, said], sort_keys=True).encode()).hexdigest()[:16]

    def compute(self, folder: Path) -> dict[str, Any]:
        """Train and measure.

        Args:
            folder: For pairs, and for the run, which the next one replaces.

        Returns:
            The line of the record.
        """
        started = time.monotonic()
        line = {"key": self.key, "arm": self.name, "condition": self.condition.name, "seed": self.seed}
        if self.arm is None:
            return line | measure(load(self.task.model), self.task, self.seed)
        run = folder / "run"
        trained = self.trained(run, folder / f"seed-{self.seed}")
        line |= {"learning_rate": self.learning_rate, **trained}
        if self.arm.strength:
            line |= choose_strength(run)
        model = load(str(run / "chosen" if self.arm.strength else run))
        line |= measure(model, self.task, self.seed)
        return line | {"seconds": round(time.monotonic() - started, 1)}

    def trained(self, run: Path, data: Path) -> dict[str, Any]:
        """Train, unless the run that is there is this one: what is done with a finished run needs no other.

        Args:
            run: Folder of the run; another one there, or a part of one, goes.
            data: Folder of the seed's pairs.

        Returns:
            What `of_training` says.
        """
        said = run / "trained.json"
        mine = replace(self, arm=replace(self.arm, name="", strength=False)).key if self.arm else ""
        if said.exists():
            found = json.loads(said.read_text(encoding="utf-8"))
            if found.pop("key") == mine:
                shutil.rmtree(run / "chosen", ignore_errors=True)
                return dict(found)
        shutil.rmtree(run, ignore_errors=True)
        found = of_training(
            self.train(run, *world.write_data(self.task, data, self.condition, self.seed)), run
        )
        write_json(said, {"key": mine, **found})
        return found

    def train(self, run: Path, train: Path, held_out: Path) -> Any:
        """Run ``train-dpo`` with this cell's settings and return the trainer."""
        from dynamic_dpo.cli.train_dpo import train_dpo
        from dynamic_dpo.config import apply_overrides, get_training_config

        assert self.arm is not None
        settings: dict[str, Any] = {
            **SHARED,
            "policy_name": self.task.model,
            "dataset.dataset_name": str(train),
            "dataset.eval_dataset_name": str(held_out),
            "dpo_training.epochs": self.condition.epochs,
            "dpo_training.learning_rate": self.learning_rate,
            "dpo_training.seed": self.seed,
            "dpo_training.save_dir": str(run),
            "engine.reference_dir": str(run.parent / "reference"),
            **self.arm.settings,
        }
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        return train_dpo(get_training_config(apply_overrides({}, overrides)))


def load(name: str) -> tuple[Any, Any]:
    """Return a model and its tokenizer."""
    from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model

    source = resolve_model(name)
    return load_model(source), load_tokenizer(source)


def of_training(trainer: Any, run: Path) -> dict[str, Any]:
    """Return what a run says of itself, and what its final weights make of the held-out pairs."""
    summary = json.loads((run / "run_summary.json").read_text(encoding="utf-8"))
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    # The last evaluation is that of the last step; weights that were kept from an earlier one get their own.
    kept = summary.get("keep_best") or {}
    final = trainer.evaluate() if kept else history[-1]
    # What the chosen answers of training pairs have gained on the reference by the end, nats a token.
    ratios = [entry["logratios/chosen"] for entry in trainer.state.log_history if "logratios/chosen" in entry]
    return {
        "held_out_loss": final["eval_loss"],
        "held_out_accuracy": final["eval_rewards/accuracies"],
        "held_out_losses": [round(entry["eval_loss"], 5) for entry in history],
        "chosen_logratio": None if kept else float(np.mean(ratios[-len(ratios) // 8 :])),
        "beta": summary["beta_final"],
        "kept_step": kept.get("step"),
        "training_seconds": round(summary["training_seconds"], 1),
    }


def choose_strength(run: Path) -> dict[str, Any]:
    """Have ``dynamic-dpo strength`` choose by held-out loss and write the model; returns its held-out figures."""
    from dynamic_dpo.cli import strength

    if strength.main([str(run), "--out", str(run / "chosen")]):
        raise RuntimeError(f"dynamic-dpo strength failed on {run}")
    curve = json.loads((run / "strength.json").read_text(encoding="utf-8"))
    chosen = next(point for point in curve["points"] if point["strength"] == curve["chosen"])
    return {
        "strength": curve["chosen"],
        "held_out_loss": chosen["loss"],
        "held_out_accuracy": chosen["accuracy"],
        "chosen_logratio": None,
    }


def measure(loaded: tuple[Any, Any], task: world.Task, seed: int) -> dict[str, Any]:
    """Have a model answer the measured prompts at temperature 1, and say what its answers are.

    The KL divergence from the model before training is estimated by the mean difference of log-probabilities over the
    answers themselves, which is unbiased since nothing of the distribution is cut off but the length: answers of the
    most tokens count to where they were cut.

    Args:
        loaded: Model and tokenizer.
        task: What it is asked, and what it was before training.
        seed: The same for all arms, whose answers then hang on the same random numbers.

    Returns:
        ``scores``, [prompts, samples], of the task's reward; ``kls``, [prompts], nats an answer; and over all
        answers the mean number of words and of `repetition`, and the shares that stopped by themselves (``finished``)
        and that have a fault of the lint (``faulty``).
    """
    from dynamic_dpo.eval.generate.batched import generate
    from dynamic_dpo.eval.judges.function import load_function
    from dynamic_dpo.eval.lint import lint_output

    model, tokenizer = loaded
    answers = generate(
        model,
        tokenizer,
        world.measured_prompts(task),
        max_new_tokens=world.MOST_TOKENS,
        num_samples=task.num_samples,
        batch_size=64,
        seed=seed,
    )
    reward = load_function(task.scorer)
    scores = np.array([reward(answer.text) for answer in answers]).reshape(-1, task.num_samples)
    words = [len(answer.text.split()) for answer in answers]
    return {
        "scores": rounded(scores),
        "kls": rounded(divergences(loaded, task.model, answers).reshape(scores.shape).mean(axis=1)),
        "words": float(np.mean(words)),
        "finished": float(np.mean([answer.finished for answer in answers])),
        "repetition": float(np.mean([repetition(answer.text) for answer in answers])),
        "faulty": float(np.mean([bool(lint_output(answer.text)) for answer in answers])),
    }


def repetition(text: str) -> float:
    """Return the share of an answer's word pairs that stood in it before.

    Example:
        >>> repetition("so good and so good and so good")
        0.5714285714285714
    """
    words = text.lower().split()
    pairs = list(itertools.pairwise(words))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0


def divergences(loaded: tuple[Any, Any], start: str, answers: Sequence[Generation]) -> np.ndarray:
    """Return, by answer, how much likelier it is under a model than under that of the name ``start``, nats."""
    from dynamic_dpo.engine.scorer import PairScorer
    from dynamic_dpo.eval.prompts.render import render_prompt

    model, tokenizer = loaded
    prompts = [render_prompt(tokenizer, answer.prompt) for answer in answers]
    written = [
        [*answer.token_ids, *([] if answer.stop_token_id is None else [answer.stop_token_id])]
        for answer in answers
    ]
    ours, before = (
        PairScorer(one).score_sequences(one, prompts, written).logps.double().numpy()
        for one in (model, load(start)[0])
    )
    return np.asarray(ours - before)


def rounded(values: Any, digits: int = 4) -> Any:
    """Return an array as nested lists of short numbers."""
    return np.round(np.asarray(values, dtype=float), digits).tolist()
