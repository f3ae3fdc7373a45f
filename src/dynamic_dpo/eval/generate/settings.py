"""How outputs are written, and what an engine is: a loaded model that writes.

The engines themselves are in ``engines`` (transformers) and ``vllm``; both take these settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.prompts.render import Prompt

if TYPE_CHECKING:
    # A plan of an evaluation holds these settings, and is made without torch.
    from dynamic_dpo.eval.generate.batched import Generation

EngineName = Literal["transformers", "vllm"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class GenerationSettings:
    """How outputs are written.

    Attributes:
        max_new_tokens: Longest output in tokens.
        temperature: Divides the logits; 0 takes the most likely token each time.
        top_p: Probability of the nucleus, in (0, 1].
        do_sample: ``False`` takes the most likely token; ``None`` samples where the temperature is positive.
        num_samples: Outputs per prompt.
        seed: Another seed, other samples.
        batch_size: Outputs written side by side.
        device: ``auto``, ``cpu``, ``cuda`` …
        precision: Number format of the model; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
        engine: ``transformers`` or ``vllm``.
        tensor_parallel_size: GPUs that one model is spread over; vllm only.
    """

    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    do_sample: bool | None = None
    num_samples: int = 1
    seed: int = 42
    batch_size: int = 16
    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "transformers"
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        if self.tensor_parallel_size > 1 and self.engine != "vllm":
            raise ConfigError(
                f"generation.tensor_parallel_size is {self.tensor_parallel_size}, which only generation.engine=vllm "
                "knows; set it to 1"
            )
        if self.samples and self.temperature == 0:
            raise ConfigError("generation.do_sample must not be true while generation.temperature is 0")

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
        if self.samples:
            same |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return same


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
