"""The calculator of memory: published sizes, arithmetic worked by hand, and a sharded run that is measured."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Qwen3MoeConfig,
)

from dynamic_dpo.cli.main import main
from dynamic_dpo.engine.memory import (
    GIB,
    MemoryLine,
    TrainingShape,
    host_lines,
    host_peak,
    memory_lines,
)
from dynamic_dpo.engine.model_shape import (
    LLAMAS,
    ModelShape,
    count,
    largest_shard,
    shape_from_config,
    shape_of,
)
from dynamic_dpo.engine.token_budget import activation_bytes, default_token_budget, layer_widths
from dynamic_dpo.errors import ConfigError, ModelError
from helpers_ranks import SECONDS, launched
from places import ROOT
from tiny import tiny_llama

named = functools.cache(shape_of)


def tiny_config(*, tied: bool = False, **sizes: int) -> LlamaConfig:
    return LlamaConfig(
        **{
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **sizes,
        },
        tie_word_embeddings=tied,
    )


def tiny_model(*, tied: bool = False, **sizes: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(tiny_config(tied=tied, **sizes))


TINY = shape_from_config(tiny_config())


def by_name(model: ModelShape, **training: Any) -> dict[str, MemoryLine]:
    return {line.name: line for line in memory_lines(model, TrainingShape(**training))}


def host(model: ModelShape, **training: Any) -> dict[str, MemoryLine]:
    return {line.name: line for line in host_lines(model, TrainingShape(**training))}


@pytest.mark.parametrize(
    ("name", "parameters"), [("1b", 1_235_814_400), ("8b", 8_030_261_248), ("70b", 70_553_706_496)]
)
def test_the_shapes_have_the_published_numbers_of_parameters(name: str, parameters: int) -> None:
    assert named(name).parameters == parameters


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_and_adapters_are_those_of_a_real_model(tied: bool) -> None:
    shape, model = shape_from_config(tiny_config(tied=tied)), tiny_model(tied=tied)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [tuple(p.shape) for p in adapted.parameters() if p.requires_grad]
    assert sorted(shape.adapter(4)) == sorted(trained)


def _layers_of(model: Any) -> Any:
    return model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers


SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "GPT-2": GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=4),
    "Gemma3": Gemma3TextConfig(**SMALL, head_dim=16),
    "Mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "Qwen3-MoE": Qwen3MoeConfig(**SMALL, moe_intermediate_size=20, num_experts=4, num_experts_per_tok=3),
    "DeepSeek-V3": DeepseekV3Config(
        **(SMALL | {"num_key_value_heads": 4}),
        moe_intermediate_size=20,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
}


@pytest.mark.parametrize("family", CONFIGS)
def test_any_family_is_counted_as_it_is_built(family: str) -> None:
    config = CONFIGS[family]
    shape, model = shape_from_config(config), AutoModelForCausalLM.from_config(config)
    assert sorted(shape.tensors) == sorted(tuple(p.shape) for p in model.parameters())
    assert (shape.layers, shape.vocabulary) == (2, 96)
    # What FSDP gathers: the layers one by one, and beside the embeddings what belongs to none of them.
    layers = [sum(p.numel() for p in layer.parameters()) for layer in _layers_of(model)]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    apart = 0 if tied else model.get_input_embeddings().weight.numel()
    assert shape.unit == max(layers)
    assert shape.kept == shape.parameters - sum(layers) - apart


@pytest.mark.parametrize(
    ("family", "widths"),
    [
        ("GPT-2", (32, 128)),
        ("Gemma3", (64, 48)),  # four heads of 16 are wider than the residual stream
        ("Mixtral", (32, 2 * 48)),
        ("Qwen3-MoE", (32, 3 * 20)),
        ("DeepSeek-V3", (32, 2 * 20 + 20)),
    ],
)
def test_a_token_passes_all_its_experts_and_wide_heads(family: str, widths: tuple[int, int]) -> None:
    assert layer_widths(CONFIGS[family]) == widths
    shape = shape_from_config(CONFIGS[family])
    assert (shape.hidden, shape.inner) == widths


def test_rows_are_dealt_out_whole_as_fsdp_deals_them() -> None:
    # 7 rows of 3 on 4 GPUs: 2, 2, 2 and 1; a vector of 5: 2, 2, 1 and none.
    assert largest_shard([(7, 3), (5,)], gpus=4) == 2 * 3 + 2
    assert largest_shard([(8, 3)], gpus=4) == 6
    lines = by_name(shape_from_config(tiny_config(vocab_size=97)), gpus=2, sharding="fsdp", precision="fp32")
    # Embeddings and head have 97 rows of 32: the first GPU has 49, all else is even.
    total = TINY.parameters + 2 * 32
    assert lines["weights"].bytes == 4 * (total + 2 * 32) // 2
    assert lines["weights"].arithmetic == f"{total // 2 + 32:,} of {total:,} × 4 B"


def test_the_state_of_adam_is_eight_bytes_a_parameter_as_torch_keeps_it() -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert by_name(TINY)["Adam"].bytes == sum(t.numel() * t.element_size() for t in held)
    assert by_name(TINY)["gradients"].bytes == sum(p.grad.numel() * 4 for p in model.parameters())


@pytest.mark.parametrize("recomputes", [False, True])
def test_activations_are_those_by_which_the_engine_chooses_its_budget(recomputes: bool) -> None:
    line = by_name(TINY, precision="fp32", tokens=100, checkpointing=recomputes)["activations"]
    assert line.bytes == 100 * activation_bytes(tiny_model(), recomputes=recomputes, lean=True)


def test_an_8b_model_on_8_gpus_by_hand() -> None:
    lines = by_name(named("8b"), gpus=8, sharding="fsdp", tokens=4096, checkpointing=True)
    # 8,030,261,248 × 4 / 8 = 4,015,130,624
    assert lines["weights"].bytes == lines["gradients"].bytes == 4_015_130_624
    assert lines["Adam"].bytes == 8_030_261_248
    # A layer: 2 × 4,096² + 2 × 4,096 × 1,024 + 3 × 4,096 × 14,336 + 2 × 4,096 = 218,112,000. Head and final norm:
    # 128,256 × 4,096 + 4,096 = 525,340,672.
    assert lines["gathered weights"].bytes == (2 * 218_112_000 + 525_340_672) * 2
    assert lines["summed gradients"].bytes == 525_340_672 * 6
    # 10 × 4,096 + 3 × 14,336 = 83,968 for the layer at hand, 32 × 4,096 = 131,072 kept of all.
    assert lines["activations"].bytes == 4096 * (83_968 + 131_072) * 2
    assert lines["logits"].bytes == 256 * 128_256 * 12 + 2**27
    names = {"weights", "gradients", "Adam", "gathered weights", "summed gradients", "activations", "logits"}
    assert set(lines) == names
    on_host = host(named("8b"), gpus=8, sharding="fsdp")
    assert on_host["loading"].bytes == on_host["saving"].bytes == 32_121_044_992


def test_fsdp_divides_what_ddp_repeats() -> None:
    alone = by_name(named("1b"))
    repeated = by_name(named("1b"), gpus=4)
    spread = by_name(named("1b"), gpus=4, sharding="fsdp")
    for name in ("weights", "gradients", "Adam"):
        assert repeated[name].bytes == alone[name].bytes == 4 * spread[name].bytes
    assert repeated["DDP's buckets"].bytes == repeated["gradients"].bytes
    assert "DDP's buckets" not in spread | alone


def test_adapters_train_a_hundredth_and_4_bits_hold_an_eighth() -> None:
    lora, qlora = by_name(named("8b"), adapter="lora"), by_name(named("8b"), adapter="qlora")
    # Rank 16 over all matrices: 32 × 16 × (16,384 + 10,240 + 55,296) = 41,943,040.
    assert lora["gradients"].bytes == qlora["gradients"].bytes == 4 * 41_943_040
    assert lora["weights"].bytes == 2 * 8_030_261_248
    # 6,979,321,856 × 4.127 bits = 3.6 GB, and 1,050,939,392 others in two bytes.
    assert qlora["weights"].bytes == int(6_979_321_856 * (4 + 8 / 64 + 32 / 16_384) / 8) + 2 * 1_050_939_392


def test_a_reference_costs_memory_only_while_it_lives_as_a_second_model() -> None:
    assert "reference" not in by_name(named("1b"))
    assert by_name(named("1b"), reference="live")["reference"].bytes == 4 * named("1b").parameters
    assert "reference" not in by_name(named("1b"), reference="live", adapter="lora")


def test_weights_under_adapters_may_be_bfloat16() -> None:
    wide, narrow = (by_name(named("8b"), adapter="lora", frozen=frozen) for frozen in ("fp32", "bf16"))
    assert by_name(named("8b"), adapter="lora") == narrow  # as the commands load them under bf16
    assert by_name(named("8b"), adapter="lora", precision="fp32")["weights"] == wide["weights"]
    assert wide["weights"].bytes == 2 * narrow["weights"].bytes == 4 * 8_030_261_248
    assert wide["adapters"] == narrow["adapters"]
    assert host(named("8b"), adapter="lora", frozen="bf16")["loading"].bytes == 2 * 8_030_261_248


def test_adapters_are_spread_too_and_a_rank_of_4_leaves_most_of_8_gpus_without_its_first_matrix() -> None:
    line = by_name(TINY, adapter="lora", rank=4, gpus=8, sharding="fsdp")["gradients"]
    # Rank 4 of 32 in: the first GPU has one row of 32 where half a row would be its share.
    first = sum(into + -(-out // 8) * 4 for out, into in TINY.linear)
    assert line.bytes == 4 * first > 4 * count(TINY.adapter(4)) // 8


def test_the_host_loads_once_under_fsdp_and_once_a_process_otherwise() -> None:
    whole = 4 * named("8b").parameters
    assert host(named("8b"), gpus=16, sharding="fsdp")["loading"].bytes == whole
    # Two nodes of eight: the first one's processes alone are counted.
    assert host(named("8b"), gpus=16)["loading"].bytes == 8 * whole
    assert host(named("8b"), gpus=2, gpus_per_node=4)["loading"].bytes == 2 * whole
    assert host(named("8b"), gpus=8, sharding="fsdp", reference="live")["loading"].bytes == 2 * whole
    assert "loading" not in host(named("8b"), adapter="qlora")
    assert host(named("8b"), adapter="lora")["saving"].bytes == 4 * 41_943_040


def test_offloading_moves_activations_from_each_gpu_to_the_host() -> None:
    settings = {"gpus": 2, "tokens": 100, "precision": "fp32"}
    kept, moved = by_name(TINY, **settings), by_name(TINY, **settings, offload=True)
    layer = 10 * 32 + 3 * 48
    assert kept["activations"].bytes == 100 * 2 * layer * 4
    # Of a model of two layers no less stays: one computes while the other's travel.
    assert moved["activations"].bytes == 100 * 2 * layer * 4
    lines = host_lines(TINY, TrainingShape(**settings, offload=True))
    assert lines[-1].bytes == 2 * 100 * 2 * layer * 4
    # Loading is over when training starts; at its end the model is gathered while nothing is kept.
    assert host_peak(lines) == max(lines[0].bytes, lines[1].bytes + lines[2].bytes)
    assert host(named("8b"), checkpointing=True, offload=True)["activations"].bytes == 4096 * 32 * 4096 * 2


def test_a_sharded_model_leaves_room_for_more_tokens_than_a_whole_one() -> None:
    whole, spread = tiny_model(vocab_size=8000), tiny_model(vocab_size=8000)
    for parameter in spread.parameters():
        # As a sharded tensor has it: the size of the whole, and the part that lies here.
        parameter._local_tensor = parameter.detach()[: max(1, len(parameter) // 8)]
    token = activation_bytes(whole)
    needed = sum(p.numel() * 16 for p in whole.parameters())
    memory = int((needed + 512 * token) / 0.6) + 1
    assert default_token_budget(whole, memory=memory) == 512
    assert default_token_budget(spread, memory=memory) == 768  # the most on a CPU


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelShape, list[dict[str, Any]]]:
    """A model of 266 MB, trained three steps on two processes, each the "GPU" of the other's half."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        tiny_config(
            vocab_size=8191,
            hidden_size=640,
            intermediate_size=1791,
            num_hidden_layers=12,
            num_attention_heads=10,
            num_key_value_heads=5,
        )
    )
    folder = tmp_path_factory.mktemp("measured")
    # Of bfloat16, as models are published: float32 files would be mapped into memory instead of being read.
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    results = launched("measured_run.py", folder / "run", folder / "model", ranks=2, sharded=True)
    return shape_of(str(folder / "model")), results


@pytest.mark.timeout(SECONDS + 30)
def test_weights_gradients_and_optimizer_are_those_of_a_run_on_two_processes(
    measured: tuple[ModelShape, list[dict[str, Any]]],
) -> None:
    shape, (first, second) = measured
    for name, line in by_name(shape, gpus=2, sharding="fsdp", precision="fp32").items():
        if name in ("weights", "gradients", "Adam"):
            assert first[name] == line.bytes
            assert second[name] == pytest.approx(line.bytes, rel=0.01)


def test_host_memory_is_that_of_a_run_on_two_processes(
    measured: tuple[ModelShape, list[dict[str, Any]]],
) -> None:
    shape, (first, second) = measured
    lines = host(shape, gpus=2, sharding="fsdp")
    assert first["loading"] == pytest.approx(lines["loading"].bytes, rel=0.1)
    assert first["saving"] == pytest.approx(lines["saving"].bytes, rel=0.1)
    assert second["saving"] < 0.5 * lines["saving"].bytes


def test_the_operating_system_sees_what_is_counted(
    measured: tuple[ModelShape, list[dict[str, Any]]],
) -> None:
    shape, results = measured
    lines = by_name(shape, gpus=2, sharding="fsdp", precision="fp32")
    # A step of a few short rows leaves next to no activations and logits.
    peak = sum(line.bytes for name, line in lines.items() if name not in ("activations", "logits"))
    for rank in results:
        assert rank["training"] == pytest.approx(peak, rel=0.1)


def test_the_command_shows_the_arithmetic_and_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "8b", "--gpus", "8", "--sharding", "fsdp"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("8b: 8,030,261,248 parameters (32 layers of 4,096 and 14,336")
    assert "8,030,261,248 trained × 8 B / 8 GPUs" in shown
    lines = memory_lines(named("8b"), TrainingShape(gpus=8, sharding="fsdp"))
    assert f"{sum(line.bytes for line in lines) / GIB:.2f} GiB" in shown
    assert "the first node's own memory, 8 processes\n  loading          8,030,261,248 × 4 B" in shown
    assert "not measured on a GPU" in shown


def test_a_model_of_its_own_sizes_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [
        "--hidden",
        "576",
        "--layers",
        "30",
        "--inner",
        "1536",
        "--vocabulary",
        "49152",
        "--key-value",
        "192",
    ]
    assert main(["memory", *sizes, "--tied", "--precision", "fp32", "--gpu-gib", "4"]) == 0
    shown = capsys.readouterr().out
    assert "134,515,008 parameters" in shown  # SmolLM2-135M.
    assert "does not fit in 3.6 GiB" in shown


def test_an_adapter_is_counted_as_it_is_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert main(["memory", str(tmp_path / "adapter")]) == 0
    alone = capsys.readouterr().out
    assert f"{trained:,} given × 4 B" in alone
    assert f"{sum(one.numel() for one in tiny_llama().parameters()):,} parameters" in alone
    assert "reference" not in alone
    # A live reference is the adapter as it was, so a second model.
    assert main(["memory", str(tmp_path / "adapter"), "--reference", "live"]) == 0
    assert "  reference " in capsys.readouterr().out
    for options in (["--rank", "4"], ["--adapter", "none"]):
        assert main(["memory", str(tmp_path / "adapter"), *options]) == ConfigError.exit_code
        assert "is trained as it is: leave --rank out" in capsys.readouterr().err
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"1234567890")
    assert main(["memory", str(tmp_path / "adapter")]) == ModelError.exit_code
    assert "cannot be read" in capsys.readouterr().err


def test_a_model_is_read_from_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CONFIGS["Qwen3-MoE"].save_pretrained(tmp_path)
    assert main(["memory", str(tmp_path), "--adapter", "lora", "--rank", "4"]) == 0
    shape = shape_from_config(CONFIGS["Qwen3-MoE"])
    assert (
        f"{tmp_path}: {shape.parameters:,} parameters (2 layers of 32 and 60, 96" in capsys.readouterr().out
    )


def test_the_page_shows_what_the_command_prints_and_the_table_follows_from_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert main(["memory", "8b", "--gpus", "8", "--sharding", "fsdp", "--checkpointing"]) == 0
    assert capsys.readouterr().out in page

    def gib(name: str, **training: object) -> str:
        lines = by_name(named(name), checkpointing=True, **training).values()
        return f"{sum(line.bytes for line in lines) / GIB:.1f}"

    rows = {
        "all weights, FSDP over 8 GPUs": {"gpus": 8, "sharding": "fsdp"},
        "all weights, FSDP over 32 GPUs": {"gpus": 32, "sharding": "fsdp"},
        "LoRA of rank 16, 1 GPU": {"adapter": "lora"},
        "LoRA of rank 16 over float32 weights, 1 GPU": {"adapter": "lora", "frozen": "fp32"},
        "LoRA of rank 16, FSDP over 8 GPUs": {"adapter": "lora", "gpus": 8, "sharding": "fsdp"},
        "QLoRA of rank 16, 1 GPU": {"adapter": "qlora"},
    }
    for title, training in rows.items():
        assert f"| {title} | {' | '.join(gib(name, **training) for name in LLAMAS)} |" in page
    both = " | ".join(f"{gib(name)} / {gib(name, gpus=8)}" for name in LLAMAS)
    assert f"| all weights, 1 GPU, or each with DDP's buckets | {both} |" in page
    hosts = {
        "all weights, 1 GPU": {},
        "all weights, DDP over 8 GPUs": {"gpus": 8},
        "all weights, FSDP over 8 or 32 GPUs": {"gpus": 32, "sharding": "fsdp"},
        "LoRA of rank 16, 1 GPU, or FSDP over 8": {"adapter": "lora", "gpus": 8, "sharding": "fsdp"},
        "QLoRA of rank 16, 1 GPU, saving alone": {"adapter": "qlora"},
    }
    for title, training in hosts.items():
        peaks = [host_peak(host_lines(named(name), TrainingShape(**training))) / GIB for name in LLAMAS]
        assert f"| {title} | {' | '.join(f'{peak:.1f}' for peak in peaks)} |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a model, or the sizes of one: --hidden, --layers, --inner, --vocabulary missing"),
        (["8b", "--hidden", "5"], "give the model '8b' or sizes of your own, not both"),
        (["8b", "--gpus", "0"], "gpus must be at least 1, got 0"),
        (["8b", "--adapter", "qlora", "--sharding", "fsdp"], "4-bit weights are not sharded here"),
        (["8b", "--frozen", "bf16"], "frozen weights of bf16 are those under LoRA's adapters"),
        (
            ["--hidden", "0", "--layers", "1", "--inner", "1", "--vocabulary", "1"],
            "hidden must be at least 1",
        ),
    ],
)
def test_impossible_questions_are_answered_with_what_to_do(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *arguments]) == ConfigError.exit_code
    assert message in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said_with_what_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for name, message in (
        ("13b", "Give 1b, 8b, 70b, a hub name"),
        (str(tmp_path), "no causal language"),
    ):
        assert main(["memory", name]) == ModelError.exit_code
        assert message in capsys.readouterr().err
