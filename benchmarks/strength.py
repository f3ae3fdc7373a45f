"""What a curve over ten strengths costs, in evaluations of the same held-out pairs: all weights, and an adapter.

    python benchmarks/strength.py
    python benchmarks/strength.py --hidden 64 --layers 2 --pairs 8 --rounds 1      # seconds, to see it work

An evaluation is one pass of the engine over the pairs, as a trainer makes it without gradients. Weights are random:
what they are costs nothing. Medians over rounds, curve and evaluation in alternation in one process.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dynamic_dpo.engine.capability import inference
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.eval.strength.between import BetweenScales, BetweenWeights
from dynamic_dpo.eval.strength.curve import strength_curve
from dynamic_dpo.utils.process import prepare_process

GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0)


def make_pairs(count: int, vocabulary: int) -> PairBatch:
    """Return pairs of HH's usual lengths: prompts of 40 to 200 tokens, answers of 20 to 120."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(draw.randint(low, high))]

    columns = [[ids(*span) for _ in range(count)] for span in ((40, 200), (20, 120), (20, 120))]
    return PairBatch(*columns, list(range(count)))


def make_line(kind: str, options: argparse.Namespace) -> BetweenWeights | BetweenScales:
    """Return a policy and its reference, as the command opens them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=8 * options.hidden // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 32,
        num_key_value_heads=options.hidden // 64,
    )
    model: Any = LlamaForCausalLM(config)
    if kind == "adapter":
        lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        return BetweenScales(get_peft_model(model, lora).eval())
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1e-3 * torch.randn_like(weight)
    return BetweenWeights(model.eval(), start)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, a line a kind."""
    parser = argparse.ArgumentParser(prog="python benchmarks/strength.py", description=__doc__)
    for name, default in (
        ("hidden", 192),
        ("layers", 4),
        ("vocabulary", 4_000),
        ("pairs", 16),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    options = parser.parse_args(arguments)
    prepare_process()
    pairs = make_pairs(options.pairs, options.vocabulary)
    for kind in ("all weights", "adapter"):
        line = make_line(kind, options)
        scorer = PairScorer(line.model)
        plan = scorer.plan(pairs, with_gradients=False)
        seconds: dict[str, list[float]] = {"evaluation": [], "curve": []}
        for _ in range(options.rounds):
            began = time.perf_counter()
            with inference(line.model):
                for microbatch in plan:
                    scorer.score(line.model, pairs.select(microbatch))
            between = time.perf_counter()
            strength_curve(line, pairs, GRID, beta=0.1)
            seconds["evaluation"].append(between - began)
            seconds["curve"].append(time.perf_counter() - between)
        one, ten = (statistics.median(seconds[name]) for name in ("evaluation", "curve"))
        parameters = sum(weight.numel() for weight in line.model.parameters())
        print(
            f"{kind}, {parameters / 1e6:.1f} M parameters, {options.pairs} pairs: an evaluation {one:.2f} s, ten "
            f"strengths {ten:.2f} s, {ten / one:.2f} evaluations",
            flush=True,
        )


if __name__ == "__main__":
    main()
