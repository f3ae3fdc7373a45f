"""Choosing the next token of many rows at once, each row with random numbers of its own.

The random number of a token is a pure function of its row's key, the step and the token's id. It does not
depend on the batch, its order or the device, and nothing has to be remembered.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

# How many tokens are looked at for the nucleus, and how many where the last did not hold it. Selecting a few
# hundred is far cheaper than sorting a vocabulary, and nearly always enough.
NUCLEUS_GUESSES = (512, 8192)


def row_key(seed: int, prompt: str, sample: int) -> int:
    """Return the key of one row's random numbers, a signed 64-bit integer.

    Args:
        seed: The user's seed.
        prompt: What stands for the prompt's content, such as `prompt_key`.
        sample: Which of several samples of that prompt this is.

    Example:
        >>> row_key(0, "soup", 0) == row_key(0, "soup", 0), row_key(0, "soup", 0) == row_key(0, "soup", 1)
        (True, False)
    """
    digest = hashlib.sha256(f"{seed}\n{sample}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def uniform_noise(keys: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Return one uniform number for every row and token.

    Entry ``step * 2**32 + token`` of the SplitMix64 stream that starts at the row's key (Steele, Lea and
    Flood 2014), written in wrapping 64-bit integers, which every device has.

    Args:
        keys: Keys of the rows, int64. Shape [B].
        step: How many tokens the rows have written.
        tokens: Token ids, int64. Shape [B, K].

    Returns:
        Numbers in [0, 1), float64. Shape [B, K].

    Example:
        >>> uniform_noise(torch.tensor([0]), 0, torch.tensor([[0]])).item()  # SplitMix64's first, seed 0
        0.8833108082136426
    """
    counter = tokens + (step << 32) + 1
    z = keys.unsqueeze(-1) + counter * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shifted(z, 31)
    return _shifted(z, 11).double() * 2.0**-53


def sample_tokens(logits: Tensor, keys: Tensor, step: int, *, temperature: float, top_p: float) -> Tensor:
    """Sample each row's next token from its nucleus.

    The nucleus is the smallest set of most likely tokens whose probability reaches ``top_p``. In it the
    token with the largest ``p / e`` is taken, ``e`` exponential noise of that token: a race that each token
    wins with its own probability, and whose winner, unlike an inverted distribution function, does not
    hang on the order of nearly equal tokens or on the last digits of a long sum.

    Args:
        logits: Scores of the next token. Shape [B, V].
        keys: Keys of the rows, int64. Shape [B].
        step: How many tokens the rows have written.
        temperature: Divides the logits; positive.
        top_p: Share of probability to keep, in (0, 1]; 1 keeps the whole vocabulary.

    Returns:
        Token ids. Shape [B].

    Example:
        >>> logits = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(1000, 3)
        >>> tokens = sample_tokens(logits, torch.arange(1000) ** 5, 0, temperature=1.0, top_p=0.85)
        >>> sorted(set(tokens.tolist()))
        [0, 1]
    """
    scores = logits.float() / temperature
    if top_p >= 1.0:
        everything = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        return _race(torch.softmax(scores, dim=-1), everything, keys, step)
    norm = scores.logsumexp(dim=-1, keepdim=True)
    chosen = torch.empty_like(keys)
    rows = torch.arange(len(scores), device=scores.device)
    for guess in (*NUCLEUS_GUESSES, scores.shape[-1]):
        best, tokens = scores[rows].topk(min(guess, scores.shape[-1]), dim=-1)
        probs = (best - norm[rows]).double().exp()
        # A token is in the nucleus while the tokens before it have not reached top_p; the first always is.
        reached = probs.cumsum(dim=-1)
        nucleus = probs * (reached - probs < top_p)
        holds = reached[:, -1] >= top_p
        if guess >= scores.shape[-1]:
            holds.fill_(True)  # Rounding may leave the whole vocabulary a hair short of top_p.
        chosen[rows[holds]] = _race(nucleus[holds], tokens[holds], keys[rows[holds]], step)
        rows = rows[~holds]
        if not len(rows):
            break
    return chosen


def _race(weights: Tensor, tokens: Tensor, keys: Tensor, step: int) -> Tensor:
    """Return each row's winner: a token wins in proportion to its weight. [B, K], [B, K], [B] -> [B]."""
    exponential = -torch.log1p(-uniform_noise(keys, step, tokens)).clamp(max=-(2.0**-60))
    winner = (weights / exponential).argmax(dim=-1, keepdim=True)
    return tokens.gather(-1, winner).squeeze(-1)


def _signed(value: int) -> int:
    """Write an unsigned 64-bit constant as the signed integer with the same bits."""
    return value - (1 << 64) if value >> 63 else value


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
