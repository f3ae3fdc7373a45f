"""What only a CUDA device shows, run by `make test-gpu`: compiled packed attention, bfloat16, memory, several GPUs.

Where there is no device everything is skipped, and what needs two GPUs or vLLM says so for itself.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dynamic_dpo.config import dump_yaml
from dynamic_dpo.engine.capability import inference
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.memory import TrainingShape, memory_lines
from dynamic_dpo.engine.model_shape import shape_from_config
from dynamic_dpo.engine.packed.flex import GRAPHS_PER_KERNEL, compiled_kernel, flex_packed_attention
from dynamic_dpo.engine.packed.span_attention import packed_attention
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers.preference_trainer import PreferenceTrainer
from dynamic_dpo.trainers.reference_pass import collate_pairs
from helpers_attention import largest_error, output_and_gradients, random_inputs, random_spans
from helpers_ranks import FSDP2, free_port
from places import ROOT
from tiny import VOCAB, random_pairs, training_arguments, word_tokenizer

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# FlexAttention's kernels want heads of at least 16. Rows are longer than every window.
WINDOW = 24
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.05,
}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped heads": ("Llama", {}),
    "a window in every layer": ("Mistral", {"sliding_window": WINDOW}),
    "caps and alternating windows": ("Gemma2", ALTERNATING | {"attn_logit_softcapping": 2.0}),
    "a norm before, alternating windows": ("Gemma3Text", ALTERNATING),
    "sinks and alternating windows": (
        "GptOss",
        ALTERNATING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "narrow values": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "head_dim": None,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
}


def family_model(family: str) -> Any:
    name, changes = FAMILIES[family]
    torch.manual_seed(0)
    options = {key: value for key, value in (SIZES | changes).items() if value is not None}
    config = getattr(transformers, f"{name}Config")(**options)
    return AutoModelForCausalLM.from_config(config)


def llama(**sizes: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | sizes, attn_implementation="sdpa"))


def pairs(count: int = 24, *, longest: int = 60) -> PairBatch:
    return collate_pairs(random_pairs(count, seed=4, longest=longest).to_list())["pairs"]


def sums_and_gradients(
    model: Any, engine: EngineConfig, batch: PairBatch | None = None
) -> tuple[torch.Tensor, list[torch.Tensor], str]:
    scorer = PairScorer(model, engine)
    scored = scorer.score(model, batch or pairs())
    (scored.chosen - scored.rejected).sum().backward()
    gradients = [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]
    return torch.stack([scored.chosen, scored.rejected]).detach().cpu(), gradients, scorer.layout


def reset_device_peak() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def trainer_on_device(model: Any, folder: Path, dataset: Any, **settings: Any) -> PreferenceTrainer:
    engine = settings.pop("engine", None)
    peft = settings.pop("peft_config", None)
    return PreferenceTrainer(
        model,
        None,
        training_arguments(folder, use_cpu=DEVICE.type == "cpu", **settings),
        dataset,
        processing_class=word_tokenizer(),
        method=DPO(),
        engine=engine,
        peft_config=peft,
    )


# ---- packed attention, compiled ----


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_on_the_gpu_are_plain_rows_on_the_cpu(family: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    on_cpu = sums_and_gradients(family_model(family), EngineConfig(layout="plain"))
    on_gpu = sums_and_gradients(family_model(family).to(DEVICE), EngineConfig(layout="packed"))
    assert on_gpu[2] == "packed"
    torch.testing.assert_close(on_gpu[0], on_cpu[0], rtol=1e-4, atol=1e-3)
    for ours, theirs in zip(on_gpu[1], on_cpu[1], strict=True):
        assert float((ours - theirs).norm()) <= 1e-3 * float(theirs.norm()) + 1e-6


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
        moved = [part.detach().to(DEVICE).requires_grad_(part.requires_grad) for part in inputs]
        expected = output_and_gradients(packed_attention, spans, inputs, **rule)
        ours = [part.cpu() for part in output_and_gradients(on_the_gpu, spans, moved, **rule)]
        assert largest_error(ours, expected) < 1e-3
        (alone,) = output_and_gradients(on_the_gpu, spans, moved, gradients=False, **rule)
        assert largest_error([alone.cpu()], expected[:1]) < 1e-3
    assert counters["stats"]["unique_graphs"] == GRAPHS_PER_KERNEL


def test_other_lengths_compile_nothing_anew() -> None:
    torch._dynamo.reset()
    compiled_kernel.cache_clear()
    counters.clear()
    model = llama().to(DEVICE)
    scorer = PairScorer(model, EngineConfig(layout="packed"))
    draw = random.Random(0)
    for count in range(1, 31):
        scored = scorer.score(model, pairs(count, longest=draw.randint(5, 80)))
        (scored.chosen - scored.rejected).sum().backward()
    # One shape of heads: a graph with gradients and one without.
    assert counters["stats"]["unique_graphs"] <= GRAPHS_PER_KERNEL


# ---- bfloat16 ----


def test_log_probabilities_stay_float32_in_bfloat16() -> None:
    model = llama().to(DEVICE, torch.bfloat16)
    scorer = PairScorer(model, EngineConfig(layout="packed"))
    with inference(model):
        ours = scorer.score(model, pairs())
    expected, _, _ = sums_and_gradients(llama(), EngineConfig(layout="plain"))
    assert ours.chosen.dtype == torch.float32
    torch.testing.assert_close(torch.stack([ours.chosen, ours.rejected]).cpu(), expected, rtol=0.02, atol=1.0)


def test_the_first_step_of_long_rows_in_bfloat16_starts_at_the_reference(tmp_path: Path) -> None:
    # The guard ends the run itself where margins at the start are not those of one model.
    trainer = trainer_on_device(
        llama(max_position_embeddings=2048),
        tmp_path,
        random_pairs(16, seed=3, longest=400),
        bf16=True,
        max_steps=2,
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert abs(first["margins/mean"]) < 1.0
    assert first["loss"] == pytest.approx(0.6931, abs=0.05)


def test_steps_in_bfloat16_go_the_way_of_float32(tmp_path: Path) -> None:
    losses = []
    for bf16 in (False, True):
        trainer = trainer_on_device(
            llama(), tmp_path / str(bf16), random_pairs(32), bf16=bf16, max_steps=5, learning_rate=1e-3
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
    assert losses[0][-1] < losses[0][0]


def test_adapters_train_in_float32_over_weights_of_bfloat16(tmp_path: Path) -> None:
    trainer = trainer_on_device(
        llama().to(torch.bfloat16),
        tmp_path,
        random_pairs(32),
        bf16=True,
        max_steps=3,
        learning_rate=1e-3,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    named = dict(trainer.policy.model.named_parameters())
    before = {name: value.detach().clone() for name, value in named.items()}
    trainer.train()
    for name, value in named.items():
        assert value.dtype == (torch.float32 if value.requires_grad else torch.bfloat16), name
        assert value.requires_grad or torch.equal(value.cpu(), before[name].cpu()), name
    moved = [name for name, value in named.items() if not torch.equal(value.cpu(), before[name].cpu())]
    assert any("lora_B" in name for name in moved)


# ---- memory ----

LARGER: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
}


def test_offloaded_activations_take_less_of_the_gpus_memory() -> None:
    peaks, gradients = [], []
    batch = pairs(64, longest=100)
    for offload in (False, True):
        model = llama(**LARGER).to(DEVICE)
        # Compiled and chosen before memory is looked at.
        sums_and_gradients(model, EngineConfig(layout="packed", offload_activations=offload), batch)
        model.zero_grad(set_to_none=False)
        before = reset_device_peak()
        settings = EngineConfig(layout="packed", offload_activations=offload)
        gradients.append(sums_and_gradients(model, settings, batch)[1])
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model
    assert peaks[1] < 0.5 * peaks[0]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("checkpointing", "bf16"), [(False, True), (True, True), (False, False)])
def test_the_peak_is_what_dynamic_dpo_memory_says(tmp_path: Path, checkpointing: bool, bf16: bool) -> None:
    tokens = 4096
    model = llama(**LARGER)
    shape = shape_from_config(model.config)
    before = reset_device_peak()
    trainer = trainer_on_device(
        model,
        tmp_path,
        random_pairs(256, seed=1, longest=60),
        bf16=bf16,
        max_steps=2,
        per_device_train_batch_size=128,
        activation_checkpointing=checkpointing,
        engine=EngineConfig(layout="packed", tokens_per_microbatch=tokens),
    )
    # What trying the layouts took is no part of a step.
    reset_device_peak()
    trainer.train()
    peak = torch.cuda.max_memory_allocated() - before
    training = TrainingShape(tokens=tokens, precision="bf16" if bf16 else "fp32", checkpointing=checkpointing)
    lines = {line.name: line.bytes for line in memory_lines(shape, training)}
    # Activations are counted with half as much again, and the head keeps less of a small vocabulary.
    assert lines["weights"] + lines["gradients"] + lines["Adam"] < peak <= 1.1 * sum(lines.values())


# ---- several GPUs ----


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_shipped_fsdp2_file_trains_on_two_gpus_and_leaves_a_model(tmp_path: Path, precision: str) -> None:
    template = "{% for m in messages %}w1 {{ m['content'] }} </s>{% endfor %}"
    model = llama()
    model.save_pretrained(tmp_path / "model")
    word_tokenizer(template=template).save_pretrained(tmp_path / "model")
    draw = random.Random(0)

    def words() -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 200)))

    rows = [{"prompt": words(), "chosen": words(), "rejected": words()} for _ in range(48)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "policy_name": str(tmp_path / "model"),
        "precision": precision,
        "dataset": {"dataset_name": str(tmp_path / "rows.jsonl"), "val_ratio": 0.1},
        "dpo_training": {
            "save_dir": str(tmp_path / "dpo"),
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "log_steps": 1,
            "save_steps": 2,
            "max_steps": 4,
            "disable_tqdm": True,
        },
    }
    (tmp_path / "config.yaml").write_text(dump_yaml(settings), encoding="utf-8")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(FSDP2), "--num_processes", "2"]
    command = [*launcher, "--main_process_port", str(free_port()), "-m", "dynamic_dpo.cli.train_dpo"]
    finished = subprocess.run(
        [sys.executable, *command, "--config", str(tmp_path / "config.yaml")],
        cwd=ROOT,
        env={**os.environ, "DYNAMIC_DPO_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    reloaded = LlamaForCausalLM.from_pretrained(tmp_path / "dpo").state_dict()
    start = model.state_dict()
    assert reloaded.keys() == start.keys()
    assert all(not torch.equal(value, start[name]) for name, value in reloaded.items())


# ---- vLLM ----


def test_vllm_writes_and_gives_the_memory_back(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from dynamic_dpo.eval.generate.engines import open_engine
    from dynamic_dpo.eval.generate.settings import GenerationSettings
    from dynamic_dpo.models.adapters import find_model

    llama(vocab_size=VOCAB).save_pretrained(tmp_path)
    word_tokenizer(template="{% for m in messages %}{{ m['content'] }} {% endfor %}").save_pretrained(
        tmp_path
    )
    settings = GenerationSettings(
        engine="vllm",
        max_new_tokens=8,
        temperature=0,
        gpu_memory_utilization=0.3,
        max_model_len=64,
        enforce_eager=True,
    )
    free, _ = torch.cuda.mem_get_info()
    for _ in range(2):  # A second model finds room where the first one was.
        engine = open_engine(find_model(str(tmp_path)), settings)
        outputs = engine.write([[{"role": "user", "content": "w5 w6"}]] * 3)
        assert len(outputs) == 3
        assert len({output.token_ids for output in outputs}) == 1
        assert engine.max_length == 64
        engine.close()
        assert torch.cuda.mem_get_info()[0] > free - 2**30
