"""How far the models of an evaluation have moved from their reference, and what they think of held-out pairs.

Log-probabilities by the scoring function of training: of each model's own outputs, under it and under the reference,
and of given preference pairs. What they amount to is computed in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.render import model_prompt, render_prompt
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.eval.scoring.logps import completion_logps
from dynamic_dpo.eval.scoring.pairs import score_pairs
from dynamic_dpo.models.adapters import find_model, pick_device
from dynamic_dpo.models.sources import load_tokenizer
from dynamic_dpo.models.vocabulary import check_same_tokens
from dynamic_dpo.utils.json_lines import read_json_lines


@dataclass(frozen=True)
class ScoringSettings:
    """What is scored beside the outputs.

    Attributes:
        reference: The model that training started from.
        pairs: Preference pairs to score; ``None`` for none.
        subset: Their split with an optional slice.
        chat_template: Render text pairs through each model's chat template.
        max_length: Longest prompt plus answer of a pair, in tokens.
        beta: Scale of the rewards.
        device: Where.
    """

    reference: str
    pairs: str | None = None
    subset: str = "train"
    chat_template: bool = False
    max_length: int = 512
    beta: float = 0.1
    device: str = "auto"


def held_out_margins(spec: ModelSpec, settings: ScoringSettings, *, progress: bool = True) -> list[float]:
    """Return the margins of a model on the pairs, in nats and without beta; empty where no pairs are given.

    Raises:
        DataError: If the pairs cannot be used.
        ModelError: If a model cannot be used.
    """
    if settings.pairs is None:
        return []
    # Against itself nothing is to be learned, but the numbers are zeros and need no exception.
    return score_pairs(
        spec.path,
        settings.reference,
        settings.pairs,
        revision=spec.revision,
        beta=settings.beta,
        subset=settings.subset,
        chat_template=settings.chat_template,
        max_length=settings.max_length,
        device=settings.device,
        progress=progress,
    ).margins


def output_logps(
    prompts: Sequence[PromptRecord],
    outputs_file: str | Path,
    fingerprint: str,
    spec: ModelSpec,
    settings: ScoringSettings,
    *,
    progress: bool = True,
) -> tuple[list[float], list[float]]:
    """Return the log-probability of each of a model's outputs under the model and under the reference.

    Args:
        prompts: The prompts.
        outputs_file: The file of outputs, with their token ids.
        fingerprint: Of the model's outputs in it.
        spec: The model, which gives the form of its prompts.
        settings: The reference and the device.
        progress: Whether a terminal gets a progress bar.

    Returns:
        Summed log-probabilities in nats, in the order of prompts and samples. The end of an output that stopped by
        itself is counted as the tokenizer's eos token.

    Raises:
        DataError: If the file has outputs without token ids.
        ModelError: If a model cannot be used, or the two have different tokens.
    """
    device = pick_device(settings.device, setting="generation.device")
    files, reference_files = spec.find_files(), find_model(settings.reference)
    tokenizer = load_tokenizer(files.tokenizer)
    check_same_tokens(
        tokenizer,
        load_tokenizer(reference_files.tokenizer),
        policy_name=spec.name,
        reference_name=settings.reference,
    )
    read, written = _token_ids(prompts, read_json_lines(outputs_file), fingerprint, spec, tokenizer)
    policy, start = (
        completion_logps(which, read, written, device=device, progress=progress)
        for which in (files, reference_files)
    )
    return policy, start


def _token_ids(
    prompts: Sequence[PromptRecord],
    lines: Iterable[dict[str, Any]],
    fingerprint: str,
    spec: ModelSpec,
    tokenizer: Any,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return what the model read and what it wrote, for every output in the order of prompts and samples."""
    found: dict[tuple[str, int], list[int]] = {}
    for line in lines:
        if line.get("fingerprint") != fingerprint or "left_out" in line:
            continue
        if "token_ids" not in line:
            raise DataError(
                f"an output of {spec.name} has no token ids: it is not of this version; remove it and generate again"
            )
        end = [tokenizer.eos_token_id] if line["finished"] else []
        found.setdefault((line["id"], line["sample"]), [*line["token_ids"], *end])
    order = {prompt.id: place for place, prompt in enumerate(prompts)}
    keys = sorted((key for key in found if key[0] in order), key=lambda key: (order[key[0]], key[1]))
    asked = {id_ for id_, _ in keys}
    rendered = {
        prompt.id: render_prompt(
            tokenizer,
            model_prompt(
                prompt.messages,
                template=spec.prompt_template,
                prompt_format=spec.prompt_format,
                has_chat_template=bool(getattr(tokenizer, "chat_template", None)),
            ),
        )
        for prompt in prompts
        if prompt.id in asked
    }
    return [rendered[id_] for id_, _ in keys], [found[key] for key in keys]
