"""transformers as an engine, and the choice between it and vLLM.

A model is loaded here, or in ``vllm``, once for all the prompts of a stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamic_dpo.eval.generate.batched import Generation, generate
from dynamic_dpo.eval.generate.settings import GenerationSettings, OutputEngine
from dynamic_dpo.eval.prompts.render import Prompt
from dynamic_dpo.models.adapters import ModelFiles, free_unused_models, open_model, pick_device


class TransformersEngine:
    """`generate` on a model of transformers.

    Args:
        files: Where the model is.
        settings: How to write.

    Raises:
        ConfigError: If the device is not there.
        ModelError: If the model cannot be loaded.
    """

    def __init__(self, files: ModelFiles, settings: GenerationSettings) -> None:
        device = pick_device(settings.device, setting="generation.device")
        self.settings = settings
        self.model, self.tokenizer = open_model(
            files, device=device, dtype=settings.resolved_precision(device)
        )
        self.max_length: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.prompts_at_once = max(1, settings.batch_size // settings.num_samples)

    def write(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """Return ``num_samples`` outputs for every prompt."""
        settings = self.settings
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens,
            # Without sampling the temperature says nothing, but must still be one.
            temperature=settings.temperature or 1.0,
            top_p=settings.top_p,
            do_sample=settings.samples,
            batch_size=settings.batch_size,
            num_samples=settings.num_samples,
            seed=settings.seed,
            progress=False,
        )

    def close(self) -> None:
        """Let the model's memory go."""
        del self.model
        free_unused_models()


def open_engine(files: ModelFiles, settings: GenerationSettings) -> OutputEngine:
    """Load a model into the engine that the settings name."""
    if settings.engine == "vllm":
        from dynamic_dpo.eval.generate.vllm import VLLMEngine

        return VLLMEngine(files, settings)
    return TransformersEngine(files, settings)
