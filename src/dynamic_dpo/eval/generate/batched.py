"""Batched generation whose outputs depend on model, prompt and seed, and on nothing else.

Prompts are rendered once, padded on the left and decoded with the model's own cache; a prompt sampled
several times is read once, and rows that have stopped leave the batch. Batch size and order change the
speed, not the text (in float32: shorter types round differently in different batches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.generate.decoder import Decoder
from dynamic_dpo.eval.generate.sampling import row_key, sample_tokens
from dynamic_dpo.eval.prompts.render import Prompt, prompt_key, render_prompt
from dynamic_dpo.utils.templates import stop_token_ids


class Generation(NamedTuple):
    """One output and what it answers.

    Attributes:
        prompt: The prompt as it was given.
        sample: Which sample of that prompt this is, from 0.
        text: The decoded output without its stop token. Other special tokens stay visible, so that a
            leaked template can be seen (`lint_output`).
        token_ids: The output's ids without the stop token.
        finished: Whether the model stopped by itself; ``False`` means cut at ``max_new_tokens``.
        num_prompt_tokens: Length of the rendered prompt.
        finish_reason: ``stop`` or ``length``.
        stop_token_id: The token by which it stopped, which is none of ``token_ids``; ``None`` where it was cut.
    """

    prompt: Prompt
    sample: int
    text: str
    token_ids: tuple[int, ...]
    finished: bool
    num_prompt_tokens: int
    finish_reason: str | None = None
    stop_token_id: int | None = None


class _Row(NamedTuple):
    """One output to be written: where it goes, what it reads, what its random numbers hang on."""

    place: int
    ids: tuple[int, ...]
    key: int


class WrittenIds(NamedTuple):
    """One output as token ids.

    Attributes:
        token_ids: Without the stop token.
        stop_token_id: The token by which it stopped; ``None`` where it was cut.
    """

    token_ids: tuple[int, ...]
    stop_token_id: int | None


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    do_sample: bool = True,
    batch_size: int = 16,
    num_samples: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[Generation]:
    """Write ``num_samples`` outputs for every prompt.

    The random numbers of an output come from a hash of seed, prompt content and sample number. Equal
    prompts with equal sample numbers therefore get equal outputs; ask for several by ``num_samples``.

    Args:
        model: A decoder-only Hugging Face model, with or without adapters; put in evaluation mode and back.
        tokenizer: Its tokenizer.
        prompts: Plain texts, continued as they stand, or lists of chat messages for the template.
        max_new_tokens: Longest output in tokens.
        min_new_tokens: Shortest output in tokens: before that no stop token can be written.
        temperature: Divides the logits before sampling; positive.
        top_p: Probability of the nucleus to sample from, in (0, 1].
        do_sample: ``False`` takes the most likely token each time; temperature and top_p then say nothing.
        batch_size: How many outputs are written side by side.
        num_samples: Outputs per prompt; the prompt is read once for those in one batch.
        seed: Another seed, other samples.
        progress: Whether a terminal gets a progress bar.

    Returns:
        One `Generation` per prompt and sample, samples of a prompt together, prompts in the given order.

    Raises:
        ConfigError: If a number is out of its range.
        DataError: If a prompt is unusable or leaves the model no room for ``max_new_tokens``.
        ModelError: If the model is no decoder-only model with a cache, or the template is missing or wrong.
    """
    rendered = [render_prompt(tokenizer, prompt) for prompt in prompts]
    written = continue_ids(
        model,
        tokenizer,
        rendered,
        names=[prompt_key(prompt) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_p=top_p,
        do_sample=do_sample,
        batch_size=batch_size,
        num_samples=num_samples,
        seed=seed,
        progress=progress,
    )
    return [
        Generation(
            prompt=prompts[place // num_samples],
            sample=place % num_samples,
            text=tokenizer.decode(output.token_ids, clean_up_tokenization_spaces=False),
            token_ids=output.token_ids,
            finished=output.stop_token_id is not None,
            num_prompt_tokens=len(rendered[place // num_samples]),
            finish_reason="length" if output.stop_token_id is None else "stop",
            stop_token_id=output.stop_token_id,
        )
        for place, output in enumerate(written)
    ]


def continue_ids(
    model: Any,
    tokenizer: Any,
    rendered: Sequence[Sequence[int]],
    *,
    names: Sequence[str],
    max_new_tokens: int,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    do_sample: bool = True,
    batch_size: int = 16,
    num_samples: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> list[WrittenIds]:
    """Write ``num_samples`` outputs behind every row of token ids; the rest is as in `generate`.

    Args:
        model: See `generate`.
        tokenizer: Says which tokens end an output.
        rendered: Token ids of each prompt, at least one.
        names: What stands for each prompt in its outputs' random numbers, such as `prompt_key`.
        max_new_tokens: See `generate`, as for all that follow.
        min_new_tokens: Shortest output.
        temperature: Divides the logits.
        top_p: Probability of the nucleus.
        do_sample: Whether tokens are drawn.
        batch_size: Outputs written side by side.
        num_samples: Outputs per prompt.
        seed: Seed of the sampling.
        progress: Whether a terminal gets a progress bar.

    Returns:
        The outputs, those of a prompt together, prompts in the given order.

    Raises:
        ConfigError: If a number is out of its range.
        DataError: If a prompt leaves the model no room.
        ModelError: If the model is no decoder-only model with a cache.
    """
    _check_settings(max_new_tokens, temperature, top_p, batch_size, num_samples)
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ConfigError(
            f"generation.min_new_tokens must lie in [0, {max_new_tokens}] (max_new_tokens), got {min_new_tokens}"
        )
    _check_room(model, rendered, max_new_tokens)
    rows = [
        _Row(number * num_samples + sample, tuple(ids), row_key(seed, name, sample))
        for number, (name, ids) in enumerate(zip(names, rendered, strict=True))
        for sample in range(num_samples)
    ]
    # Like lengths side by side waste no padding; the longest first, so that memory runs out now or never.
    rows.sort(key=lambda row: (-len(row.ids), row.place))

    stop_ids = stop_token_ids(tokenizer, getattr(model, "generation_config", None))

    def next_tokens(logits: Tensor, keys: Tensor, step: int) -> Tensor:
        if step < min_new_tokens:
            logits = logits.index_fill(-1, torch.tensor(stop_ids, device=logits.device), -torch.inf)
        if not do_sample:
            return logits.argmax(dim=-1)
        return sample_tokens(logits, keys, step, temperature=temperature, top_p=top_p)

    written: dict[int, WrittenIds] = {}
    # disable=None shows the bar on a terminal only.
    bar = tqdm(total=len(rows), desc="Generating", unit="output", disable=None if progress else True)
    with bar, _evaluating(model), torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            outputs = _write_batch(
                model, batch, stop_ids=stop_ids, max_new_tokens=max_new_tokens, next_tokens=next_tokens
            )
            written.update((row.place, output) for row, output in zip(batch, outputs, strict=True))
            bar.update(len(batch))
    return [written[place] for place in range(len(rows))]


def _write_batch(
    model: Any,
    rows: list[_Row],
    *,
    stop_ids: list[int],
    max_new_tokens: int,
    next_tokens: Callable[[Tensor, Tensor, int], Tensor],
) -> list[WrittenIds]:
    """Decode one batch, reading equal prompts once; rows that have stopped leave it."""
    distinct = list(dict.fromkeys(row.ids for row in rows))
    decoder = Decoder(model)
    logits = decoder.read(distinct)
    copies = torch.tensor([distinct.index(row.ids) for row in rows], device=logits.device)
    decoder.select(copies)
    logits, keys = logits[copies], torch.tensor([row.key for row in rows], device=logits.device)

    ids: list[list[int]] = [[] for _ in rows]
    stop_id: list[int | None] = [None] * len(rows)
    alive = list(range(len(rows)))
    for step in range(max_new_tokens):
        tokens = next_tokens(logits, keys[alive], step)
        going = []
        for position, token in enumerate(tokens.tolist()):
            if token in stop_ids:
                stop_id[alive[position]] = token
            else:
                ids[alive[position]].append(token)
                going.append(position)
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(alive):
            alive = [alive[position] for position in going]
            index = torch.tensor(going, device=tokens.device)
            decoder.select(index)
            tokens = tokens[index]
        logits = decoder.step(tokens)
    return [WrittenIds(tuple(row), stopped) for row, stopped in zip(ids, stop_id, strict=True)]


def _check_settings(
    max_new_tokens: int, temperature: float, top_p: float, batch_size: int, num_samples: int
) -> None:
    counts = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "num_samples": num_samples}
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"generation.{name} must be at least 1, got {value}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError(
            f"generation.temperature must be positive, got {temperature}; "
            "for the most likely token each time set do_sample to false"
        )
    if not 0 < top_p <= 1:
        raise ConfigError(f"generation.top_p must lie in (0, 1], got {top_p}")


def _check_room(model: Any, rendered: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max((len(ids) for ids in rendered), default=0)
    if rendered and limit is not None and longest + max_new_tokens > limit:
        raise DataError(
            f"the longest prompt has {longest} tokens and {max_new_tokens} are to be written, but the model "
            f"holds {limit}; shorten the prompts or lower max_new_tokens"
        )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and leave the model in the mode it came in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
