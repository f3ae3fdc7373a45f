"""How outputs are written, and what an engine is: a loaded model that writes.

The engines themselves are in ``engines`` (transformers), ``vllm`` and ``server``; all take these settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.prompts.render import Prompt
from dynamic_dpo.utils.settings import check_settings, documented, setting

if TYPE_CHECKING:
    # A plan of an evaluation holds these settings, and is made without torch.
    from dynamic_dpo.eval.generate.batched import Generation

EngineName = Literal["transformers", "vllm", "server"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


_NO_SERVER = ServerSettings()
# What vLLM alone knows.
_VLLM_SETTINGS = (
    "tensor_parallel_size",
    "max_model_len",
    "gpu_memory_utilization",
    "quantization",
    "enforce_eager",
)


@documented()
@dataclass(frozen=True)
class GenerationSettings:
    """How outputs are written."""

    max_new_tokens: int = setting(256, "Most tokens of an output.", key="generation.max_new_tokens", ge=1)
    min_new_tokens: int = setting(
        0,
        "Fewest tokens of an output: before that it cannot stop.",
        key="generation.min_new_tokens",
        ge=0,
        at_most="max_new_tokens",
    )
    temperature: float = setting(
        0.7, "Sampling temperature; 0: the likeliest token.", key="generation.temperature", ge=0
    )
    top_p: float = setting(
        0.95, "Nucleus: probability mass sampled from.", key="generation.top_p", gt=0, le=1
    )
    do_sample: bool | None = setting(
        None,
        "Sample, or take the likeliest token; null: sample if temperature > 0.",
        key="generation.do_sample",
    )
    num_samples: int = setting(1, "Outputs per prompt and model.", key="generation.num_samples", ge=1)
    seed: int = setting(42, "Seed of the sampling.", key="generation.seed", ge=0)
    batch_size: int = setting(
        16,
        "Outputs written side by side; vllm and server choose by themselves.",
        key="generation.batch_size",
        ge=1,
    )
    device: str = setting(
        "auto", "cuda, cpu …; auto: a GPU where there is one.", key="generation.device", not_empty=True
    )
    precision: Precision = setting(
        "auto",
        "Number format of the models; auto: float32 on a CPU, bfloat16 on a GPU.",
        key="generation.precision",
    )
    engine: EngineName = setting(
        "transformers",
        "What generates; vllm needs CUDA GPUs, server a running server and its address in generation.server.",
        key="generation.engine",
    )
    tensor_parallel_size: int = setting(
        1, "GPUs that one model is spread over; vllm only.", key="generation.tensor_parallel_size", ge=1
    )
    max_model_len: int | None = setting(
        None,
        "Most tokens of prompt and output together; null: the model's own length, or as much of it as the GPU has "
        "memory for; vllm only.",
        key="generation.max_model_len",
        ge=1,
    )
    gpu_memory_utilization: float = setting(
        0.9,
        "Share of each GPU's memory that weights and cache may fill; vllm only.",
        key="generation.gpu_memory_utilization",
        gt=0,
        le=1,
    )
    quantization: str | None = setting(
        None,
        "Quantisation of the weights by vLLM's name, such as fp8; null: what the model's files say; vllm only.",
        key="generation.quantization",
        not_empty=True,
    )
    enforce_eager: bool = setting(
        False,
        "Record no CUDA graphs: starts sooner and takes less memory, writes more slowly; vllm only.",
        key="generation.enforce_eager",
    )
    server: ServerSettings = setting(_NO_SERVER, "The server; server only.")

    def __post_init__(self) -> None:
        check_settings(self)
        for entry in fields(self):
            value, default = getattr(self, entry.name), entry.default
            if self.engine != "vllm" and entry.name in _VLLM_SETTINGS and value != default:
                raise ConfigError(
                    f"generation.{entry.name} is {value!r}, which only generation.engine=vllm knows; set it to "
                    f"{'null' if default is None else str(default).lower()}"
                )
        self._check_server()
        if self.samples and self.temperature == 0:
            raise ConfigError("generation.do_sample must not be true while generation.temperature is 0")

    def _check_server(self) -> None:
        if self.engine != "server" and self.server != _NO_SERVER:
            raise ConfigError(
                f"generation.server has no effect while generation.engine is {self.engine}: leave it out, or set "
                "generation.engine=server"
            )
        if self.engine == "server" and self.server.base_url is None:
            raise ConfigError(
                "generation.engine is server, and generation.server.base_url does not say where it is: give its "
                "address, such as http://127.0.0.1:8000/v1"
            )
        if self.engine == "server" and self.precision != "auto":
            raise ConfigError(
                f"generation.precision is {self.precision}, which has no effect while generation.engine is server: "
                "that was started with one; set it to auto"
            )

    @property
    def samples(self) -> bool:
        """Whether outputs are sampled."""
        return self.temperature > 0 if self.do_sample is None else self.do_sample

    def resolved_precision(self, device: str) -> str:
        """Return the number format on a device."""
        if self.precision != "auto":
            return self.precision
        return "float32" if device == "cpu" else "bfloat16"

    def identity(self, device: str) -> dict[str, Any]:
        """Return what a text depends on beside model, prompt and sample number.

        Example:
            >>> greedy = GenerationSettings(temperature=0, seed=1)
            >>> greedy.identity("cpu") == GenerationSettings(temperature=0, seed=2, batch_size=4).identity("cpu")
            True
        """
        same: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "precision": self.resolved_precision(device),
            "engine": self.engine,
        }
        if self.engine == "server":
            del same["precision"]
            same["server"] = self.server.identity()
        if self.samples:
            same |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        if self.min_new_tokens:
            same["min_new_tokens"] = self.min_new_tokens
        # A prompt that is left out at one length may be asked at another.
        chosen = {"max_model_len": self.max_model_len, "quantization": self.quantization}
        return same | {name: value for name, value in chosen.items() if value is not None}


class OutputEngine(Protocol):
    """A loaded model that writes.

    Attributes:
        tokenizer: The model's tokenizer.
        max_length: Tokens that prompt and output may have together; ``None`` where the model sets no limit.
        prompts_at_once: How many prompts to hand it in one call.
    """

    tokenizer: Any
    max_length: int | None
    prompts_at_once: int

    def write(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """Return ``num_samples`` outputs for every prompt, samples of a prompt together, in the given order."""
        ...

    def close(self) -> None:
        """Let the model's memory go."""
        ...
