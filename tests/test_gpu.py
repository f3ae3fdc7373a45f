"""What only a CUDA device can show: FlexAttention on packed rows, bfloat16, offloading. Run by `make test-gpu`."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from dynamic_dpo.engine.capability import inference
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.packed.flex import GRAPHS_PER_KERNEL, compiled_kernel, flex_packed_attention
from dynamic_dpo.engine.packed.span_attention import packed_attention
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
from dynamic_dpo.trainers.reference_pass import collate_pairs
from helpers_attention import largest_error, output_and_gradients, random_inputs, random_spans
from tiny import VOCAB, random_pairs, training_arguments, word_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def llama(dtype: torch.dtype = torch.float32) -> Any:
    """FlexAttention's kernels want heads of at least 16; two key heads for four query heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.05,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).to(dtype)


def pairs(count: int = 24) -> PairBatch:
    return collate_pairs(random_pairs(count, seed=4, longest=60).to_list())["pairs"]


def sums_and_gradients(model: Any, engine: EngineConfig) -> tuple[torch.Tensor, list[torch.Tensor], str]:
    scorer = PairScorer(model, engine)
    scored = scorer.score(model, pairs())
    (scored.chosen - scored.rejected).sum().backward()
    gradients = [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]
    return torch.stack([scored.chosen, scored.rejected]).detach().cpu(), gradients, scorer.layout


def test_packed_rows_on_the_gpu_are_plain_rows_on_the_cpu() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu = sums_and_gradients(llama(), EngineConfig(layout="plain"))
    on_gpu = sums_and_gradients(llama().cuda(), EngineConfig(layout="packed"))
    assert on_gpu[2] == "packed"
    torch.testing.assert_close(on_gpu[0], on_cpu[0], rtol=1e-4, atol=1e-3)
    for ours, theirs in zip(on_gpu[1], on_cpu[1], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


@pytest.mark.parametrize(
    "rule",
    [
        {"window": 100, "groups": 2},
        {"softcap": 20.0, "groups": 2},
        {"sinks": True, "groups": 2},
        {"widths": (64, 32)},
        {"window": 100, "softcap": 20.0, "sinks": True, "widths": (64, 128), "groups": 2},
    ],
    ids=["a window", "capped", "sinks", "narrow values", "all at once"],
)
def test_flex_attention_on_the_gpu_is_packed_attention_on_the_cpu(rule: dict[str, Any]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch._dynamo.reset()
    compiled_kernel.cache_clear()
    counters.clear()
    rule = dict(rule)
    shapes = {"widths": (64, 64)} | {name: rule.pop(name) for name in ("groups", "widths") if name in rule}

    def on_the_gpu(*parts: Any, **options: Any) -> torch.Tensor:
        return flex_packed_attention(*parts, **options).transpose(1, 2)

    draw = random.Random(0)
    for _ in range(20):
        spans = random_spans(draw, prompts=draw.randint(1, 5), longest=400)
        inputs = random_inputs(spans[-1].end, dtype=torch.float32, **shapes)
        moved = [part.detach().cuda().requires_grad_(part.requires_grad) for part in inputs]
        expected = output_and_gradients(packed_attention, spans, inputs, **rule)
        ours = [part.cpu() for part in output_and_gradients(on_the_gpu, spans, moved, **rule)]
        assert largest_error(ours, expected) < 1e-3
        (alone,) = output_and_gradients(on_the_gpu, spans, moved, gradients=False, **rule)
        assert largest_error([alone.cpu()], expected[:1]) < 1e-3
    assert counters["stats"]["unique_graphs"] == GRAPHS_PER_KERNEL


def test_log_probabilities_stay_float32_in_bfloat16() -> None:
    model = llama(torch.bfloat16).cuda()
    exact = llama()
    scorer = PairScorer(model, EngineConfig(layout="packed"))
    with inference(model):
        ours = scorer.score(model, pairs())
    expected, _, _ = sums_and_gradients(exact, EngineConfig(layout="plain"))
    assert ours.chosen.dtype == torch.float32
    torch.testing.assert_close(torch.stack([ours.chosen, ours.rejected]).cpu(), expected, rtol=0.02, atol=1.0)


def test_offloaded_activations_take_less_of_the_gpus_memory() -> None:
    peaks, gradients = [], []
    for offload in (False, True):
        model = llama().cuda()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients.append(sums_and_gradients(model, EngineConfig(offload_activations=offload))[1])
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_step_in_bfloat16_goes_the_way_of_float32(tmp_path: Path) -> None:
    losses = []
    for bf16 in (False, True):
        trainer = PreferenceTrainer(
            copy.deepcopy(llama()),
            None,
            training_arguments(
                tmp_path / str(bf16),
                use_cpu=False,
                bf16=bf16,
                max_steps=5,
                learning_rate=1e-3,
                logging_steps=1,
            ),
            random_pairs(32),
            processing_class=word_tokenizer(),
            method=DPO(),
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[0][-1] < losses[0][0]
