"""vLLM as an engine: for many prompts on one or several GPUs. Written to the interface of vLLM 0.33.

Prompts are rendered here, by the same function as everywhere, and vLLM is given token ids; text is decoded here too,
so that a leaked template stays visible. Each output has a seed of its own, so that it does not depend on its
neighbours; it does depend on vLLM's version and the GPU, and is not the text that transformers would sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.eval.generate.batched import Generation
from dynamic_dpo.eval.generate.sampling import row_key
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.prompts.render import Prompt, prompt_key, render_prompt
from dynamic_dpo.models.adapters import ModelFiles, free_unused_models, pick_device
from dynamic_dpo.models.sources import load_tokenizer
from dynamic_dpo.utils.templates import stop_token_ids

# vLLM batches by itself, and best when it sees many prompts; what is written is saved between calls.
_PROMPTS_AT_ONCE = 1024
# As vLLM says "the model's own length, or as much of it as the GPU has memory for".
_LENGTH_THAT_FITS = -1
# Largest ranks of adapters that vLLM makes room for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# vLLM's processes are asked to end, and killed after so long; without a word of ours after 5 s, which is short for
# workers of a large model.
_SECONDS_TO_END = 60.0


class VLLMEngine:
    """A model in vLLM.

    Args:
        files: Where the model is; no ``.gguf`` file.
        settings: How to write. ``batch_size`` has no meaning here: vLLM fills the memory there is.

    Raises:
        ConfigError: If there is no GPU or one is named, vLLM is not installed, the model is a ``.gguf`` file, or the
            adapter's rank is above 512.
        ModelError: If the model cannot be loaded.
    """

    prompts_at_once = _PROMPTS_AT_ONCE

    def __init__(self, files: ModelFiles, settings: GenerationSettings) -> None:
        if files.base.gguf_file:
            raise ConfigError(
                f"generation.engine is vllm, but {files.base.name} is a .gguf file; use engine=transformers"
            )
        try:
            import vllm
        except ModuleNotFoundError:
            raise ConfigError(
                "generation.engine is vllm, which is not installed: pip install 'dynamic-dpo[vllm]'"
            ) from None
        device = pick_device(settings.device, setting="generation.device")
        if not device.startswith("cuda"):
            raise ConfigError(f"generation.engine is vllm, which needs a CUDA device, got {device}")
        if device != "cuda":
            raise ConfigError(
                f"generation.device is {device}, but vLLM takes the first GPUs that it sees: set generation.device "
                "to cuda, and choose them with the environment variable CUDA_VISIBLE_DEVICES"
            )
        self._vllm = vllm
        self.settings = settings
        self.tokenizer = load_tokenizer(files.tokenizer)
        self._stop_ids = stop_token_ids(self.tokenizer, _generation_config(Path(files.base.location)))
        options: dict[str, Any] = {
            "model": files.base.location,
            "tokenizer": files.tokenizer.location,
            "dtype": settings.resolved_precision(device),
            "tensor_parallel_size": settings.tensor_parallel_size,
            "max_model_len": settings.max_model_len or _LENGTH_THAT_FITS,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "quantization": settings.quantization,
            "enforce_eager": settings.enforce_eager,
            "enable_lora": files.adapter is not None,
            # The model's own generation settings must not slip in beside ours.
            "generation_config": "vllm",
        }
        if files.adapter is not None:
            options["max_lora_rank"] = _rank_of(files.adapter)
        try:
            self._llm: Any = vllm.LLM(**options)
        except (ValueError, RuntimeError, OSError) as error:
            raise ModelError(f"vLLM cannot load {files.base.name}: {error}") from error
        self._lora = None
        if files.adapter is not None:
            from vllm.lora.request import LoRARequest

            self._lora = LoRARequest(files.adapter.name, 1, str(files.adapter))
        self.max_length: int | None = self._llm.llm_engine.model_config.max_model_len

    def write(self, prompts: Sequence[Prompt]) -> list[Generation]:
        """Return ``num_samples`` outputs for every prompt."""
        samples = range(self.settings.num_samples)
        rendered = [render_prompt(self.tokenizer, prompt) for prompt in prompts]
        asked = [(number, sample) for number in range(len(prompts)) for sample in samples]
        answers = self._llm.generate(
            [{"prompt_token_ids": rendered[number]} for number, _ in asked],
            [self._sampling(prompts[number], sample) for number, sample in asked],
            lora_request=self._lora,
            use_tqdm=False,
        )
        return [
            self._generation(prompts[number], sample, len(rendered[number]), answer.outputs[0])
            for (number, sample), answer in zip(asked, answers, strict=True)
        ]

    def close(self) -> None:
        """End vLLM's processes, which hold the GPUs' memory, and wait until they have."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown(timeout=_SECONDS_TO_END)
            self._llm = None
        free_unused_models()

    def _sampling(self, prompt: Prompt, sample: int) -> Any:
        settings = self.settings
        # vLLM's seeds are not negative; dropping the sign bit keeps 63 bits of the hash.
        seed = row_key(settings.seed, prompt_key(prompt), sample) & (2**63 - 1)
        return self._vllm.SamplingParams(
            n=1,
            temperature=settings.temperature if settings.samples else 0.0,
            top_p=settings.top_p if settings.samples else 1.0,
            max_tokens=settings.max_new_tokens,
            min_tokens=settings.min_new_tokens,
            seed=seed if settings.samples else None,
            stop_token_ids=self._stop_ids,
            detokenize=False,
        )

    def _generation(self, prompt: Prompt, sample: int, num_prompt_tokens: int, output: Any) -> Generation:
        ids = tuple(output.token_ids)
        stop_id = None
        if ids and ids[-1] in self._stop_ids:
            ids, stop_id = ids[:-1], ids[-1]
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        reason = output.finish_reason
        return Generation(prompt, sample, text, ids, reason == "stop", num_prompt_tokens, reason, stop_id)


def _generation_config(folder: Path) -> Any:
    if not (folder / "generation_config.json").is_file():
        return None
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(str(folder))


def _rank_of(adapter: Path) -> int:
    """Return the smallest rank that vLLM provides for and that holds the adapter's."""
    import json

    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    wanted = max(
        [int(settings.get("r") or 8), *(int(r) for r in (settings.get("rank_pattern") or {}).values())]
    )
    for rank in _LORA_RANKS:
        if rank >= wanted:
            return rank
    raise ConfigError(
        f"the adapter {adapter} has rank {wanted}, and vLLM takes adapters up to rank {_LORA_RANKS[-1]}; use "
        "generation.engine=transformers, or merge the adapter into its base"
    )
