"""``dynamic-dpo memory``: what a training needs of each GPU's memory and the host's, with the arithmetic."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynamic_dpo.cli.common import make_parser, run_command
from dynamic_dpo.errors import ConfigError

if TYPE_CHECKING:
    from dynamic_dpo.engine.memory import MemoryLine, TrainingShape
    from dynamic_dpo.engine.model_shape import ModelShape

CUSTOM = ("hidden", "layers", "inner", "vocabulary", "key_value")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    options = _parser().parse_args(list(argv))
    from dynamic_dpo.engine.memory import TrainingShape

    model = _shape(options)
    adapter: Any = options.adapter or ("none" if model.given is None else "lora")
    if model.given is not None and (adapter == "none" or options.rank is not None):
        raise ConfigError(
            f"{options.model} is the folder of an adapter, which is trained as it is: leave --rank out, and give "
            "--adapter lora or qlora, or nothing"
        )
    training = TrainingShape(
        gpus=options.gpus,
        gpus_per_node=options.gpus_per_node,
        sharding=options.sharding,
        adapter=adapter,
        rank=TrainingShape.rank if options.rank is None else options.rank,
        frozen=options.frozen,
        precision=options.precision,
        tokens=options.tokens,
        checkpointing=options.checkpointing,
        offload=options.offload,
        head_chunk=options.head_chunk,
        reference=options.reference,
    )
    print(describe(options.model or "the model", model, training, gpu_gib=options.gpu_gib))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "dynamic-dpo memory",
        "Estimate the memory that each GPU needs, and the host's, line by line. No weights are loaded, nothing is "
        "measured.",
        example="dynamic-dpo memory 8b --gpus 8",
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="hub name, folder with config.json or of an adapter, .gguf file or package:NAME; 1b, 8b or 70b for the "
        "sizes of the Llama 3 models; else give --hidden …",
    )
    for name in CUSTOM:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"{name} of another model"
        )
    parser.add_argument("--tied", action="store_true", help="its input and output embeddings are one matrix")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs over all nodes")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="of them in one machine")
    parser.add_argument("--sharding", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument(
        "--adapter",
        choices=("none", "lora", "qlora"),
        help="default: none, or lora for the folder of an adapter",
    )
    parser.add_argument("--rank", type=int, metavar="N", help="rank of the adapters; default 16")
    parser.add_argument(
        "--frozen",
        choices=("bf16", "fp32"),
        help="weights under LoRA's adapters; default: that of --precision",
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--tokens", type=int, default=4096, metavar="N", help="engine.tokens_per_microbatch; default 4096"
    )
    parser.add_argument("--checkpointing", action="store_true", help="engine.gradient_checkpointing")
    parser.add_argument("--offload", action="store_true", help="engine.offload_activations")
    parser.add_argument("--head-chunk", type=int, default=256, metavar="N", help="engine.head_chunk")
    parser.add_argument(
        "--reference",
        choices=("stored", "live"),
        default="stored",
        help="live: a reference model stays in memory",
    )
    parser.add_argument(
        "--gpu-gib", type=float, default=80.0, metavar="GIB", help="memory of a GPU; default 80"
    )
    return parser


def _shape(options: argparse.Namespace) -> ModelShape:
    from dynamic_dpo.engine.model_shape import shape_from_config, shape_of

    given = {name: getattr(options, name) for name in CUSTOM if getattr(options, name) is not None}
    if options.model is not None:
        if given or options.tied:
            raise ConfigError(f"give the model {options.model!r} or sizes of your own, not both")
        return shape_of(options.model)
    if missing := [name for name in CUSTOM[:-1] if name not in given]:
        raise ConfigError(
            f"give a model, or the sizes of one: --{', --'.join(missing)} missing. A model is a hub name, a folder "
            "with config.json, a .gguf file, package:NAME, or 1b, 8b or 70b"
        )
    for name, value in given.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    from transformers import LlamaConfig

    key_value = given.get("key_value", given["hidden"])
    # How many heads share the widths changes no size.
    head = math.gcd(given["hidden"], key_value)
    return shape_from_config(
        LlamaConfig(
            hidden_size=given["hidden"],
            num_hidden_layers=given["layers"],
            intermediate_size=given["inner"],
            vocab_size=given["vocabulary"],
            num_attention_heads=given["hidden"] // head,
            num_key_value_heads=key_value // head,
            head_dim=head,
            tie_word_embeddings=options.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def describe(name: str, model: ModelShape, training: TrainingShape, *, gpu_gib: float) -> str:
    """Return the estimate as text, one line a part, with the sums and whether a GPU's fits.

    Args:
        name: What the model is called.
        model: Its sizes.
        training: How it is trained.
        gpu_gib: Memory of one GPU in GiB.
    """
    from dynamic_dpo.engine.memory import GIB, host_lines, host_peak, memory_lines

    lines, host = memory_lines(model, training), host_lines(model, training)
    total, peak = sum(line.bytes for line in lines), host_peak(host)
    width = max(len(line.arithmetic) for line in (*lines, *host))

    def shown(parts: Sequence[MemoryLine], word: str, bytes_: int) -> list[str]:
        rows = [(line.name, line.arithmetic, line.bytes) for line in parts]
        return [
            f"  {name:<17}{text:<{width}}  {size / GIB:8.2f} GiB"
            for name, text, size in (*rows, (word, "", bytes_))
        ]

    # A tenth stays free for fragments and the libraries' own buffers.
    fits = "fits" if total <= 0.9 * gpu_gib * GIB else "does not fit"
    gpus = "1 GPU" if training.gpus == 1 else f"each of {training.gpus} GPUs, {training.sharding.upper()}"
    processes = "1 process" if training.processes == 1 else f"{training.processes} processes"
    return "\n".join(
        [
            f"{name}: {model.parameters:,} parameters ({model.layers} layers of {model.hidden:,} and "
            f"{model.inner:,}, {model.vocabulary:,} tokens), on {gpus}",
            *shown(lines, "sum", total),
            f"  {fits} in {0.9 * gpu_gib:g} GiB, nine tenths of {gpu_gib:g} GiB. An estimate; not measured on a GPU.",
            f"the first node's own memory, {processes}",
            *shown(host, "at most", peak),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
