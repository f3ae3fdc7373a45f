"""Numerical trials on a few random tokens: does a layout, or the head by itself, give what the model gives?

Layouts are compared by the hidden states that predict and by the gradient that comes back to the embedded tokens:
both show a wrong mask at any depth, and neither needs room for a weight's gradient. The head is tried at the size its
outputs have and at one where a soft cap shows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynamic_dpo.engine.head import LogitTransform
from dynamic_dpo.engine.rows import PairBatch, Rows
from dynamic_dpo.engine.score import in_forward, predicting_states
from dynamic_dpo.engine.sharded import called_inside, forget_pass, is_sharded, reshard
from dynamic_dpo.loss.dpo_loss import at_least_float32
from dynamic_dpo.models.causal_lm import causal_lm, inside_wrappers
from dynamic_dpo.models.settings import layer_values

# The size of the head's outputs in its second trial, as a multiple of the largest cap, or by itself without one.
_CAPS_BEYOND, _LARGE_LOGIT = 4, 200.0
# Settings that hold the tokens a layer looks back, in one family or another.
WINDOW_SETTINGS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "local_attention",
    "window_size",
)
# Narrower than the sequences of a trial, and wider.
NARROW, WIDE = 3, 2**20
# What a layer raises that was given rows it has no way to take.
_REFUSALS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


class Trial(NamedTuple):
    """What a model made of the trial's pairs.

    Attributes:
        states: The hidden states that predict a completion token, at least float32. Shape [N, H].
        gradient: Gradient of a weighted sum of them with respect to the embedded tokens, summed by token id, or
            ``None`` where the embeddings take no part. Shape [U, E].
        owners: The sequence that each prediction counts to. Shape [N].
    """

    states: Tensor
    gradient: Tensor | None
    owners: Tensor


def trial_pairs(config: Any) -> PairBatch:
    """Return pairs of random ordinary tokens: two of different lengths, no special token among them."""
    text = config.get_text_config()
    special: set[int] = set()
    for settings in (config.to_dict(), text.to_dict()):
        for name, value in settings.items():
            if name.endswith(("token_id", "token_index", "token_ids")):
                special.update(value if isinstance(value, list) else [value])
    draw = random.Random(0)
    ordinary = [token for token in range(min(text.vocab_size, 4096)) if token not in special]

    def tokens(count: int) -> list[int]:
        return draw.choices(ordinary, k=count)

    sizes = ((7, 5, 4), (3, 2, 6))
    prompts, chosen, rejected = zip(*([tokens(n) for n in size] for size in sizes), strict=True)
    return PairBatch(prompts, chosen, rejected, range(len(sizes)))


def run_trial(model: Any, rows: Rows) -> Trial:
    """Run the model, wrapped or not, on rows and back to its embeddings; no parameter gets a gradient."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # Some families change what they get in place.

    hook = causal_lm(model).get_input_embeddings().register_forward_hook(keep)
    inner = inside_wrappers(model)
    try:
        with torch.enable_grad():
            states = at_least_float32(in_forward(model, lambda lm: predicting_states(lm, rows)))
            draw = torch.Generator().manual_seed(1)
            weights = torch.randn(states.shape, generator=draw).to(states)
            gradient = None
            if len(embedded) == 1 and embedded[0].shape[:2] == rows.input_ids.shape:
                (gradient,) = torch.autograd.grad((states * weights).sum(), embedded)
                gradient = _sum_by_token(at_least_float32(gradient), rows)
    except BaseException:
        if is_sharded(inner):
            forget_pass(inner)
        raise
    finally:
        hook.remove()
    if is_sharded(inner):
        reshard(inner)
    return Trial(states.detach(), gradient, rows.owners)


def _sum_by_token(gradient: Tensor, rows: Rows) -> Tensor:
    # Padding takes no part: which ids there are must not depend on the layout.
    real = rows.padding_mask().flatten().bool()
    ids, places = torch.unique(rows.input_ids.flatten()[real], return_inverse=True)
    gradient = gradient.flatten(0, 1)[real]
    return gradient.new_zeros(len(ids), gradient.shape[1]).index_add(0, places, gradient)


def is_causal(model: Any, rows: Rows) -> bool:
    """Return whether the state behind a prompt is the same with either completion after it.

    Args:
        model: The model, wrapped or not, in evaluation mode.
        rows: Plain rows of pairs on the model's device: the first prediction of each row is that of its prompt.
    """
    with torch.no_grad():
        states = at_least_float32(in_forward(model, lambda lm: predicting_states(lm, rows)))
    owners = rows.owners.tolist()
    chosen, rejected = (
        states[[owners.index(owner) for owner in range(first, rows.num_sequences, 2)]] for first in (0, 1)
    )
    return _distance(chosen, rejected, torch.arange(len(chosen), device=chosen.device)) <= tolerance(model)


def reason_against_layout(model: Any, rows: Rows, oracle: Trial) -> str | None:
    """Return why the model gives other results in a layout than ``oracle``, or ``None`` where it does not.

    Raises:
        torch.OutOfMemoryError: If memory runs out, which says nothing of the layout; so do other faults of a device.
    """
    try:
        trial = run_trial(model, rows)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except _REFUSALS as error:
        if "allocate memory" in str(error):  # So the CPU's allocator says it.
            raise
        return f"in a trial its layers raised {_said(error)}"
    allowed = tolerance(model)
    worst = _distance(trial.states, oracle.states, oracle.owners)
    if worst > allowed:
        return f"in a trial its hidden states differed by {worst:.1e} of their size; rounding explains {allowed:g}"
    if trial.gradient is not None and oracle.gradient is not None:
        together = torch.zeros(len(oracle.gradient), dtype=torch.long, device=oracle.gradient.device)
        worst = _distance(trial.gradient, oracle.gradient, together)
        if worst > allowed:
            return f"in a trial its gradients differed by {worst:.1e} of their size; rounding explains {allowed:g}"
    return None


def _said(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def _distance(values: Tensor, oracle: Tensor, owners: Tensor) -> float:
    """Return the largest distance of a sequence's values from the oracle's, as a share of their size."""
    squares = torch.stack([(values - oracle).square().sum(-1), oracle.square().sum(-1)])
    sums = squares.new_zeros(2, int(owners.max()) + 1).index_add(1, owners, squares)
    share = (sums[0] / sums[1].clamp_min(torch.finfo(sums.dtype).tiny)).sqrt()
    # A model whose weights are NaN is no worse in one layout than in the other.
    share = torch.where(sums.isnan().all(0), 0.0, share)
    return float(share.nan_to_num(nan=torch.inf).max())


def tolerance(model: Any) -> float:
    """Return the relative distance that rounding explains in the arithmetic in use."""
    lm = causal_lm(model)
    device = lm.device.type
    short = torch.is_autocast_enabled(device) or lm.dtype.itemsize < 4
    if device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        short = True  # TF32 keeps 10 bits of the mantissa.
    return 0.1 if short else 1e-3


# ---- the head ----


def logit_settings(config: Any) -> dict[str, float]:
    """Return the numbers in a configuration whose names speak of the output head, those that do nothing left out."""
    text = config.get_text_config()
    # Some families derive the factor from widths, and it does not stand in the dictionary.
    settings = {"logits_scaling": getattr(text, "logits_scaling", None), **text.to_dict()}
    return {
        name: float(value)
        for name, value in settings.items()
        if ("logit" in name or name.startswith(("lm_head", "output_multiplier", "output_scale")))
        and type(value) in (int, float)
        and value not in (0, 1)
    }


def candidate_transforms(settings: Mapping[str, float]) -> list[LogitTransform]:
    """Return what the head's outputs may go through, by the settings' names: caps, factors and divisors.

    Example:
        >>> candidate_transforms({"final_logit_softcapping": 30.0})
        [LogitTransform(scale=1.0, cap=None), LogitTransform(scale=1.0, cap=30.0)]
    """
    caps = [None, *(value for name, value in settings.items() if "cap" in name)]
    factors = [value for name, value in settings.items() if "cap" not in name]
    scales = [1.0, *factors, *(1 / factor for factor in factors)]
    return [LogitTransform(scale, cap) for scale, cap in itertools.product(scales, caps)]


def find_logit_transform(model: Any, rows: Rows) -> tuple[LogitTransform | None, str]:
    """Find what the model does to its head's outputs.

    Args:
        model: The model, wrapped or not, in evaluation mode.
        rows: Plain rows on the model's device.

    Returns:
        The transform under which the head, applied to the last hidden state, gives the model's own logits; or
        ``None`` and the reason, where none of those that the configuration suggests does.
    """
    candidates = candidate_transforms(logit_settings(causal_lm(model).config))
    large = max((_CAPS_BEYOND * each.cap for each in candidates if each.cap), default=_LARGE_LOGIT)
    try:
        with torch.no_grad():
            raw, expected = _head_at(model, rows, factor=1.0)
            trials = [
                (raw, expected),
                _head_at(model, rows, factor=large / max(float(raw.abs().max()), 1e-6)),
            ]
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except _REFUSALS as error:
        if "allocate memory" in str(error):
            raise
        return None, f"its output head cannot be run by itself ({_said(error)})"
    alike = torch.zeros(len(trials[0][0]), dtype=torch.long, device=rows.input_ids.device)

    def distance(transform: LogitTransform) -> float:
        return max(_distance(transform(raw), expected, alike) for raw, expected in trials)

    if all(raw.shape == expected.shape for raw, expected in trials):
        best = min(candidates, key=distance)
        if distance(best) <= tolerance(model):
            return best, ""
    return None, "its output head does more than map the last hidden state, scale and cap"


def _head_at(model: Any, rows: Rows, *, factor: float) -> tuple[Tensor, Tensor]:
    """Return the head's and the model's outputs where predictions are made, hidden states times ``factor``.

    Raises:
        ValueError: If the head does not get what the base model returns.
    """
    lm = causal_lm(model)
    if lm.base_model is lm:
        raise ValueError("there is no base model within the model")
    states: list[Tensor] = []

    def multiply(_: nn.Module, __: Any, output: Any) -> Any:
        states.append(output[0] * factor)
        if isinstance(output, tuple):
            return (states[-1], *output[1:])
        output[next(iter(output))] = states[-1]
        return output

    def run(lm: Any) -> tuple[Tensor, Tensor]:
        logits = lm(input_ids=rows.input_ids, attention_mask=rows.padding_mask(), use_cache=False).logits
        if len(states) != 1:
            return logits, logits
        chosen = [part.flatten(0, 1).index_select(0, rows.predictors) for part in (states[0], logits)]
        raw = called_inside(lm.get_output_embeddings(), chosen[0])
        return at_least_float32(raw), at_least_float32(chosen[1])

    # OPT calls the decoder within its base model, whose states that returns as they are.
    decoder = getattr(lm.base_model, "decoder", None)
    for source in (lm.base_model, decoder):
        if not states and isinstance(source, nn.Module):
            hook = source.register_forward_hook(multiply)
            try:
                found = in_forward(model, run)
            finally:
                hook.remove()
    if len(states) != 1:
        raise ValueError("the model does not call its base model once")
    return found


# ---- windows ----


@contextmanager
def windows_of(model: nn.Module, width: int) -> Iterator[None]:
    """Let every window of the model's attention be ``width`` tokens; afterwards each is what it was.

    A narrow one shows itself in the few tokens of a trial, a wide one takes no part in it.
    """
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    changed = [
        (owner, name, value)
        for owner in (*configs.values(), *model.modules())
        for name in WINDOW_SETTINGS
        if name not in (getattr(owner, "per_layer_attributes", None) or ())
        and type(value := getattr(owner, name, None)) is int
        and value > 0
    ]
    try:
        for owner, name, _ in changed:
            setattr(owner, name, width)
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


def window_widths(model: Any) -> list[int]:
    """Return the widths of all windows that the model's configuration names, in tokens."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    has_none = kinds and all(kind == "full_attention" for kind in kinds)
    if has_none or not getattr(config, "use_sliding_window", True):
        return []
    values = (value for name in WINDOW_SETTINGS for value in layer_values(config, name))
    return [value for value in values if type(value) is int and value > 0]
