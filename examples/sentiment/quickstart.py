"""Train a small model to write kinder reviews and look at what came of it.

    python examples/sentiment/quickstart.py [KEY=VALUE ...]

It lets SmolLM2-135M-Instruct write several reviews of each thing in ``prompts.json``, has VADER score them, makes
preference pairs of them, trains on these with a risk-controlled beta, lets the models before and after training write
reviews for prompts that training never saw, and has VADER judge them against each other. It prints a short table and
writes pages: ``report.html`` with pictures and ``evaluation/report.html`` with every comparison into the run's
folder, and one on the pairs into that of the rollout. Settings are in ``quickstart.yaml``; ``KEY=VALUE`` changes one.
Interrupted while it samples, it goes on there; answers that are there are not sampled again.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import run_command

if TYPE_CHECKING:
    from dynamic_dpo.eval.generate.batched import Generation
    from dynamic_dpo.eval.statistics.win_rate import WinRate

HERE = Path(__file__).resolve().parent
SAMPLING = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 40, "seed": 1}
NUM_SHOWN = 12
BEFORE, AFTER = "before training", "after training"
JUDGE = "dynamic_dpo.eval.rewards:vader"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Train a small model to write kinder reviews.")
    parser.add_argument("--prompts", type=int, default=32, help="how many held-out prompts to sample")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings over quickstart.yaml")
    arguments = parser.parse_args(list(argv))
    started = time.monotonic()

    from dynamic_dpo.cli.rollout import roll_out
    from dynamic_dpo.cli.train_dpo import train_dpo
    from dynamic_dpo.config import get_training_config
    from dynamic_dpo.eval import generate, write_run_report
    from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model

    config = get_training_config(read_settings(arguments.overrides))
    run_dir, rollout_dir = Path(config.dpo_training.save_dir), Path(config.rollout.output_dir)
    if not holds_rollout_of(config, rollout_dir):
        move_aside(rollout_dir)
    move_aside(run_dir)
    prompts = read_prompts("prompts_heldout.json")[: arguments.prompts]

    def stage(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    stage("1/4 Rollout: the model writes reviews, VADER scores them, pairs are made")
    roll_out(config)
    stage("2/4 Training on these pairs")
    trainer = train_dpo(config)
    stage(f"3/4 Reviews for {len(prompts)} held-out prompts, before and after training")
    source = resolve_model(config.policy_name)
    start, tokenizer = load_model(source), load_tokenizer(source)
    before, after = (
        generate(model, tokenizer, prompts, batch_size=32, **SAMPLING) for model in (start, trainer.model)
    )
    stage("4/4 Evaluation and report")
    rate, page = evaluate(before, after, run_dir / "evaluation")
    table = key_figures(before, after, rate, divergence(trainer, start, tokenizer, after))
    report = write_run_report(
        run_dir,
        samples=side_by_side(before, after)[:NUM_SHOWN],
        title="Quickstart: kinder reviews",
        table=table,
        links={
            "The rollout: scores, pairs, what was left out": rollout_dir / "report.html",
            f"The evaluation: {len(prompts)} held-out prompts, before against after": page,
        },
    )
    made = json.loads((rollout_dir / "summary.json").read_text(encoding="utf-8"))
    own = json.loads((run_dir / "run_summary.json").read_text(encoding="utf-8"))
    margins = (run_dir / "logs" / "margins" / "margins.jsonl").read_text(encoding="utf-8").splitlines()
    late = statistics.median(json.loads(line)["median"] for line in margins[-len(margins) // 4 :])
    print_table(
        {"Pairs": f"{made['pairs']} from {made['answers']} reviews of {made['prompts']} things"}
        | table
        | {
            "Beta, first and last": f"{config.beta_update.beta_0:.4g} → {own['beta_final']:.4g}",
            "Median margin, last quarter": f"{late:+.2f} nats",
            "Training speed": f"{own['pairs_per_second']:.2f} pairs/s",
            "All of it took": f"{(time.monotonic() - started) / 60:.1f} min",
        }
    )
    print(f"\nModel, logs and pictures are in {run_dir}; open {report}")
    return 0


def read_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of ``quickstart.yaml`` with the user's, the files found from any working directory."""
    from dynamic_dpo.config import apply_overrides, load_yaml

    settings = load_yaml(HERE / "quickstart.yaml")
    settings["rollout"]["prompts"]["name"] = str(HERE / "prompts.json")
    settings = apply_overrides(settings, list(overrides))
    settings["dataset"]["dataset_name"] = settings["rollout"]["output_dir"]
    return settings


def read_prompts(name: str) -> list[list[dict[str, str]]]:
    """Return the prompts of a file beside this script, each as messages."""
    return [row["prompt"] for row in json.loads((HERE / name).read_text(encoding="utf-8"))]


def holds_rollout_of(config: Any, folder: Path) -> bool:
    """Say whether the folder is a rollout of the same model with the same settings, finished or not."""
    from dynamic_dpo.config import load_yaml

    saved = folder / "config.yaml"
    if not saved.is_file():
        return False
    earlier, now = load_yaml(saved), config.model_dump(mode="json")
    return all(earlier.get(key) == now[key] for key in ("policy_name", "rollout"))


def move_aside(run_dir: Path) -> None:
    """Make room for a new run: the last one becomes ``NAME.old``, the one before it goes."""
    if run_dir.is_dir() and any(run_dir.iterdir()):
        old = run_dir.with_name(f"{run_dir.name}.old")
        if old.exists():
            shutil.rmtree(old)
        run_dir.rename(old)
        print(f"the last run is now in {old}")


def sentiment(text: str) -> float:
    """Return VADER's compound score, from -1 (displeased) to 1 (pleased)."""
    score: float = analyzer().polarity_scores(text)["compound"]
    return score


@functools.cache
def analyzer() -> Any:
    """Return VADER, its lexicon read once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def divergence(trainer: Any, start: Any, tokenizer: Any, reviews: list[Generation]) -> float:
    """Estimate the divergence of the trained model from the start, in nats per review.

    The mean, over the trained model's reviews, of the difference of the two models' log-probabilities.
    """
    from dynamic_dpo.engine.scorer import PairScorer
    from dynamic_dpo.eval.prompts.render import render_prompt

    prompts = [render_prompt(tokenizer, output.prompt) for output in reviews]
    written = [
        [*output.token_ids, *([tokenizer.eos_token_id] if output.finished else [])] for output in reviews
    ]
    policy = trainer.policy.scorer.score_sequences(trainer.model, prompts, written).logps
    return float((policy - PairScorer(start).score_sequences(start, prompts, written).logps).mean())


def evaluate(before: list[Generation], after: list[Generation], folder: Path) -> tuple[WinRate, Path]:
    """Let VADER judge every review after training against the one before, and write the evaluation's report.

    Returns:
        The win rate with its interval, and the report's page.
    """
    from dynamic_dpo.eval import (
        EvaluationData,
        FunctionScorer,
        JudgeLedger,
        OutputRecord,
        PointwiseJudge,
        PromptRecord,
        compare,
        lint_output,
        make_questions,
        run_judging,
        write_evaluation_report,
    )
    from dynamic_dpo.eval.statistics.win_rate import win_rate

    prompts = [PromptRecord.of([dict(message) for message in output.prompt]) for output in before]
    outputs = [
        OutputRecord(
            prompt.id,
            name,
            0,
            output.text,
            len(output.token_ids),
            output.finished,
            [*lint_output(output.text), *([] if output.finished else ["truncated"])],
        )
        for name, reviews in ((BEFORE, before), (AFTER, after))
        for prompt, output in zip(prompts, reviews, strict=True)
    ]
    # A score knows no order: asking in both would only say everything twice.
    questions = make_questions(prompts, outputs, [(AFTER, BEFORE)], both_orders=False).questions
    judge = PointwiseJudge(FunctionScorer(JUDGE))
    judge.name = "VADER"
    with JudgeLedger(folder / "judgements.jsonl") as ledger:
        outcome = run_judging(questions, judge, ledger, progress=False)
    paths = write_evaluation_report(
        folder,
        EvaluationData(
            prompts,
            outputs,
            outcome.records,
            title="Quickstart: reviews before and after training",
            created=time.strftime("%Y-%m-%d %H:%M:%S"),
            baseline=BEFORE,
            num_questions=len(questions),
            order_blind=[judge.name],
            provenance={"judge": judge.fingerprint(), "settings": SAMPLING},
        ),
    )
    return win_rate(compare(outcome.records, AFTER, BEFORE)), paths.html


def key_figures(
    before: list[Generation], after: list[Generation], rate: WinRate, kl: float
) -> dict[str, str]:
    """Return the table's rows on the outputs: label to text."""
    means = [statistics.mean(sentiment(output.text) for output in side) for side in (before, after)]
    counts, (low, high) = rate.counts, rate.interval
    return {
        "Mean sentiment": f"{means[0]:.2f} → {means[1]:.2f}",
        "Win rate against the start": f"{rate.rate:.0%} [{low:.0%}, {high:.0%}] "
        f"({counts.wins}–{counts.ties}–{counts.losses})",
        "KL to the start": f"{kl:.2f} nats",
    }


def side_by_side(before: list[Generation], after: list[Generation]) -> list[Any]:
    """Return the outputs as samples for the report."""
    from dynamic_dpo.eval import Sample

    return [
        Sample(old.prompt[-1]["content"], old.text, new.text, sentiment(old.text), sentiment(new.text))
        for old, new in zip(before, after, strict=True)
    ]


def print_table(rows: dict[str, str]) -> None:
    """Print label and text in two columns."""
    width = max(map(len, rows))
    print()
    for label, text in rows.items():
        print(f"  {label:<{width}}  {text}")


if __name__ == "__main__":
    sys.exit(main())
