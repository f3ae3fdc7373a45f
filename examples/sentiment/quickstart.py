"""Train a small model to write kinder reviews and look at what came of it.

    python examples/sentiment/quickstart.py [KEY=VALUE ...]

It samples reviews from SmolLM2-135M-Instruct for prompts that training never sees, trains on ``pairs.jsonl``
with a risk-controlled beta, samples again, lets VADER judge the reviews before against after, prints a short table
and writes ``report.html`` with pictures and ``evaluation/report.html`` with every comparison into the run's folder.
Settings are in ``quickstart.yaml``; ``KEY=VALUE`` changes one.
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
# As the pairs were sampled, but with another seed.
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

    from dynamic_dpo.cli.train_dpo import train_dpo
    from dynamic_dpo.config import apply_overrides, get_training_config, load_yaml
    from dynamic_dpo.eval import generate, write_run_report
    from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model

    settings = load_yaml(HERE / "quickstart.yaml")
    settings["dataset"]["dataset_name"] = str(HERE / "pairs.jsonl")
    config = get_training_config(apply_overrides(settings, arguments.overrides))
    run_dir = Path(config.dpo_training.save_dir)
    move_aside(run_dir)
    prompts = json.loads((HERE / "prompts_heldout.json").read_text(encoding="utf-8"))[: arguments.prompts]

    def stage(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    stage(f"1/4 Reviews for {len(prompts)} held-out prompts, before training")
    source = resolve_model(config.policy_name)
    start, tokenizer = load_model(source), load_tokenizer(source)
    before = generate(start, tokenizer, prompts, batch_size=32, **SAMPLING)
    stage("2/4 Training")
    trainer = train_dpo(config)
    stage("3/4 Reviews for the same prompts, after training")
    after = generate(trainer.model, tokenizer, prompts, batch_size=32, **SAMPLING)
    stage("4/4 Evaluation and report")
    rate, page = evaluate(before, after, run_dir / "evaluation")
    table = key_figures(before, after, rate, divergence(trainer, start, tokenizer, after))
    report = write_run_report(
        run_dir,
        samples=side_by_side(before, after)[:NUM_SHOWN],
        title="Quickstart: kinder reviews",
        table=table,
        links={f"The evaluation: {len(prompts)} held-out prompts, before against after": page},
    )
    own = json.loads((run_dir / "run_summary.json").read_text(encoding="utf-8"))
    margins = (run_dir / "logs" / "margins" / "margins.jsonl").read_text(encoding="utf-8").splitlines()
    late = statistics.median(json.loads(line)["median"] for line in margins[-len(margins) // 4 :])
    print_table(
        table
        | {
            "Beta, first and last": f"{config.beta_update.beta_0:.4g} → {own['beta_final']:.4g}",
            "Median margin, last quarter": f"{late:+.2f} nats",
            "Training speed": f"{own['pairs_per_second']:.2f} pairs/s",
            "All of it took": f"{(time.monotonic() - started) / 60:.1f} min",
        }
    )
    print(f"\nModel, logs and pictures are in {run_dir}; open {report}")
    return 0


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
