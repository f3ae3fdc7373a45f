"""The calculator of memory: published sizes, arithmetic worked by hand, the estimate the engine uses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dynamic_dpo.cli.main import main
from dynamic_dpo.engine.memory import GIB, SHAPES, MemoryLine, ModelShape, TrainingShape, memory_lines
from dynamic_dpo.engine.token_budget import activation_bytes
from dynamic_dpo.errors import ConfigError
from places import ROOT

TINY = ModelShape(hidden=32, layers=2, inner=48, vocabulary=96, key_value=16)


def tiny_model(shape: ModelShape) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=4,
            num_key_value_heads=4 * shape.key_value // shape.hidden,
            tie_word_embeddings=shape.tied,
        )
    )


def by_name(model: ModelShape, **training: object) -> dict[str, MemoryLine]:
    return {line.name: line for line in memory_lines(model, TrainingShape(**training))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "parameters"), [("1b", 1_235_814_400), ("8b", 8_030_261_248), ("70b", 70_553_706_496)]
)
def test_the_shapes_have_the_published_numbers_of_parameters(name: str, parameters: int) -> None:
    assert SHAPES[name].parameters == parameters


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_and_adapters_are_those_of_a_real_model(tied: bool) -> None:
    shape = dataclasses.replace(TINY, tied=tied)
    model = tiny_model(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert shape.adapter(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_the_state_of_adam_is_eight_bytes_a_parameter_as_torch_keeps_it() -> None:
    model = tiny_model(TINY)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    assert by_name(TINY)["Adam"].bytes == sum(t.numel() * t.element_size() for t in held)
    assert by_name(TINY)["gradients"].bytes == sum(p.grad.numel() * 4 for p in model.parameters())


@pytest.mark.parametrize("recomputes", [False, True])
def test_activations_are_those_by_which_the_engine_chooses_its_budget(recomputes: bool) -> None:
    line = by_name(TINY, precision="fp32", tokens=100, checkpointing=recomputes)["activations"]
    assert line.bytes == 100 * activation_bytes(tiny_model(TINY), recomputes=recomputes, lean=True)


def test_an_8b_model_on_8_gpus_by_hand() -> None:
    lines = by_name(SHAPES["8b"], gpus=8, sharding="fsdp", tokens=4096, checkpointing=True)
    # 8,030,261,248 × 4 / 8 = 4,015,130,624
    assert lines["weights"].bytes == lines["gradients"].bytes == 4_015_130_624
    assert lines["Adam"].bytes == 8_030_261_248
    # Two units in flight; the embedding of 128,256 × 4,096 is the largest.
    assert lines["gathered weights"].bytes == 2 * 525_336_576 * 4
    # 10 × 4,096 + 3 × 14,336 = 83,968 for the layer at hand, 32 × 4,096 = 131,072 kept of all.
    assert lines["activations"].bytes == 4096 * (83_968 + 131_072) * 2
    assert lines["logits"].bytes == 256 * 128_256 * 12 + 2**27
    assert set(lines) == {"weights", "gradients", "Adam", "gathered weights", "activations", "logits"}


def test_fsdp_divides_what_ddp_repeats() -> None:
    alone = by_name(SHAPES["1b"])
    repeated = by_name(SHAPES["1b"], gpus=4)
    spread = by_name(SHAPES["1b"], gpus=4, sharding="fsdp")
    for name in ("weights", "gradients", "Adam"):
        assert repeated[name].bytes == alone[name].bytes == 4 * spread[name].bytes
    assert repeated["DDP's buckets"].bytes == repeated["gradients"].bytes
    assert "DDP's buckets" not in spread | alone


def test_adapters_train_a_hundredth_and_4_bits_hold_an_eighth() -> None:
    lora, qlora = by_name(SHAPES["8b"], adapter="lora"), by_name(SHAPES["8b"], adapter="qlora")
    # Rank 16 over all matrices: 32 × 16 × (16,384 + 10,240 + 55,296) = 41,943,040.
    assert lora["gradients"].bytes == qlora["gradients"].bytes == 4 * 41_943_040
    assert lora["weights"].bytes == 4 * 8_030_261_248
    # 6,979,321,856 × 4.127 bits = 3.6 GB, and 1,050,939,392 others in two bytes.
    assert qlora["weights"].bytes == int(6_979_321_856 * (4 + 8 / 64 + 32 / 16_384) / 8) + 2 * 1_050_939_392


def test_a_reference_costs_memory_only_while_it_lives_as_a_second_model() -> None:
    assert "reference" not in by_name(SHAPES["1b"])
    assert by_name(SHAPES["1b"], reference="live")["reference"].bytes == 4 * SHAPES["1b"].parameters
    assert "reference" not in by_name(SHAPES["1b"], reference="live", adapter="lora")


def test_the_command_shows_the_arithmetic_and_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "8b", "--gpus", "8", "--sharding", "fsdp"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("8b: 8,030,261,248 parameters (32 layers of 4,096 and 14,336")
    assert "8,030,261,248 trained × 8 B / 8 GPUs" in shown
    lines = memory_lines(SHAPES["8b"], TrainingShape(gpus=8, sharding="fsdp"))
    assert f"{sum(line.bytes for line in lines) / GIB:.2f} GiB" in shown
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


def test_the_page_shows_what_the_command_prints_and_the_table_follows_from_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert main(["memory", "8b", "--gpus", "8", "--sharding", "fsdp", "--checkpointing"]) == 0
    assert capsys.readouterr().out in page

    def gib(name: str, **training: object) -> str:
        lines = by_name(SHAPES[name], checkpointing=True, **training).values()
        return f"{sum(line.bytes for line in lines) / GIB:.1f}"

    rows = {
        "all weights, FSDP over 8 GPUs": {"gpus": 8, "sharding": "fsdp"},
        "all weights, FSDP over 32 GPUs": {"gpus": 32, "sharding": "fsdp"},
        "LoRA of rank 16, 1 GPU": {"adapter": "lora"},
        "LoRA of rank 16, FSDP over 8 GPUs": {"adapter": "lora", "gpus": 8, "sharding": "fsdp"},
        "QLoRA of rank 16, 1 GPU": {"adapter": "qlora"},
    }
    for title, training in rows.items():
        assert f"| {title} | {' | '.join(gib(name, **training) for name in SHAPES)} |" in page
    both = " | ".join(f"{gib(name)} / {gib(name, gpus=8)}" for name in SHAPES)
    assert f"| all weights, 1 GPU, or each with DDP's buckets | {both} |" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["13b"], "model '13b' is not one of 1b, 8b, 70b"),
        ([], "or the sizes of a model: --hidden, --layers, --inner, --vocabulary missing"),
        (["8b", "--hidden", "5"], "give the model '8b' or sizes of your own, not both"),
        (["8b", "--gpus", "0"], "gpus must be at least 1, got 0"),
        (["8b", "--adapter", "qlora", "--sharding", "fsdp"], "4-bit weights are not sharded here"),
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
