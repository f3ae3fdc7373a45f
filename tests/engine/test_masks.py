"""Tokens that are read and not scored: in every layout nothing of them is predicted, and nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.reference_store import pair_key
from dynamic_dpo.engine.rows import (
    PairBatch,
    PromptBatch,
    packed_rows,
    plain_rows,
    scored_lengths,
    shared_rows,
)
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.methods.base import LogitChunk, Needs, TokenStatistic
from tiny import VOCAB, tiny_llama

LAYOUTS = {"packed": packed_rows, "shared": shared_rows, "plain": plain_rows}
# Prompt, chosen and rejected lengths.
SIZES = [(3, 4, 5), (1, 1, 2), (7, 1, 6), (2, 9, 3), (20, 15, 30)]


def some_pairs() -> PairBatch:
    """Pairs whose answers hold others' turns: within, at the border of prompt and answer, at the end, nowhere."""
    draw = random.Random(3)

    def ids(count: int) -> list[int]:
        return [draw.randrange(4, VOCAB) for _ in range(count)]

    prompts, chosen, rejected = zip(*([ids(n) for n in size] for size in SIZES), strict=True)
    chosen_masks = [[1, 0, 0, 1], None, None, [0, 1, 1, 0, 0, 1, 1, 1, 0], [1] * 5 + [0] * 6 + [1] * 4]
    rejected_masks = [None, [0, 1], [1, 0, 0, 0, 0, 1], [1, 1, 0], [1, 0] * 15]
    return PairBatch(
        prompts,
        chosen,
        rejected,
        range(len(SIZES)),
        chosen_masks=chosen_masks,
        rejected_masks=rejected_masks,
    )


def of_single_tokens(model: torch.nn.Module, pairs: PairBatch) -> list[tuple[Tensor, Tensor]]:
    """The oracle: each sequence by itself, log-probabilities of its completion and its mask."""
    found = []
    for prompt, completions, masks in zip(pairs.prompts, pairs.completions, pairs.masks or (), strict=True):
        for completion, mask in zip(completions, masks, strict=True):
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
            found.append((logps, torch.tensor(mask or [1] * len(completion))))
    return found


ids = st.lists(st.integers(1, 1000), min_size=1, max_size=6)
masked = ids.flatmap(lambda tokens: st.tuples(st.just(tokens), st.none() | st.lists(
    st.integers(0, 1), min_size=len(tokens), max_size=len(tokens)
)))  # fmt: skip
prompts = st.lists(st.tuples(ids, st.lists(masked, min_size=1, max_size=4)), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(prompts=prompts, layout=st.sampled_from(list(LAYOUTS)))
def test_a_mask_leaves_out_predictions_and_changes_nothing_else(prompts, layout) -> None:
    completions = [[tokens for tokens, _ in each] for _, each in prompts]
    masks = [[mask for _, mask in each] for _, each in prompts]
    batch = PromptBatch([prompt for prompt, _ in prompts], completions, masks)
    whole, rows = LAYOUTS[layout](batch._replace(masks=None)), LAYOUTS[layout](batch)
    counts = [
        bool(mask is None or mask[place])
        for of_prompt, of_masks in zip(completions, masks, strict=True)
        for tokens, mask in zip(of_prompt, of_masks, strict=True)
        for place in range(len(tokens))
    ]
    for name in ("input_ids", "position_ids", "segments"):
        assert torch.equal(getattr(rows, name), getattr(whole, name))
    assert (rows.spans, rows.num_sequences) == (whole.spans, whole.num_sequences)
    for name in ("predictors", "targets", "owners"):
        assert torch.equal(getattr(rows, name), getattr(whole, name)[torch.tensor(counts)])
    lengths = [length for each in scored_lengths(batch) for length in each]
    assert torch.bincount(rows.owners, minlength=rows.num_sequences).tolist() == lengths


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_lengths_and_statistics_are_those_of_the_scored_tokens(layout: str) -> None:
    model, pairs = tiny_llama(), some_pairs()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    entropy = TokenStatistic("entropy", lambda chunk: entropy_of(chunk))
    scores = scorer.score(model, pairs, needs=Needs(statistics=(entropy,), token_logps=True))
    expected = of_single_tokens(model, pairs)
    sums = torch.stack([(logps * mask).sum() for logps, mask in expected]).view(-1, 2)
    torch.testing.assert_close(torch.stack([scores.chosen, scores.rejected], 1), sums, rtol=1e-5, atol=1e-5)
    lengths = torch.stack([scores.chosen_lengths, scores.rejected_lengths], 1)
    assert lengths.tolist() == scored_lengths(pairs) == [[2, 5], [1, 1], [1, 2], [5, 2], [9, 15]]
    alone = torch.cat([logps[mask.bool()] for logps, mask in expected])
    order = torch.argsort(scores.token_owners, stable=True)
    torch.testing.assert_close(scores.token_logps[order], alone, rtol=1e-5, atol=1e-5)
    entropies = [of_entropy(model, pairs, place) for place in range(len(pairs))]
    torch.testing.assert_close(scores.statistics["entropy"], torch.tensor(entropies), rtol=1e-5, atol=1e-5)


def of_entropy(model: torch.nn.Module, pairs: PairBatch, place: int) -> list[float]:
    found = []
    for completion, mask in zip(pairs.completions[place], (pairs.masks or ())[place], strict=True):
        prompt = pairs.prompts[place]
        logps = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        of_tokens = -(logps.exp() * logps).sum(-1)
        found.append(float((of_tokens * torch.tensor(mask or [1] * len(completion))).sum().detach()))
    return found


def entropy_of(chunk: LogitChunk) -> Tensor:
    logps = chunk.policy.log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("separate_head", [True, False], ids=["chunked head", "the model's own logits"])
def test_the_gradient_of_a_token_that_is_not_scored_is_exactly_zero(layout: str, separate_head: bool) -> None:
    model, pairs = tiny_llama(), some_pairs()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    scorer.separate_head = separate_head
    states: list[Tensor] = []

    def keep(_: torch.nn.Module, __: object, output: Tensor) -> Tensor:
        states.append(output.detach().requires_grad_())
        return states[-1]

    hook = model.model.norm.register_forward_hook(keep)
    scores = scorer.score(model, pairs)
    hook.remove()
    (scores.chosen.sum() + 2 * scores.rejected.sum()).backward()
    grad = states[0].grad
    assert grad is not None
    rows = scorer.rows(pairs)
    whole = scorer.rows(PairBatch(pairs.prompts, pairs.chosen, pairs.rejected, pairs.rows))
    silent = sorted(set(whole.predictors.tolist()) - set(rows.predictors.tolist()))
    assert len(silent) > 25
    flat = grad.flatten(0, 1)
    assert torch.count_nonzero(flat[silent]) == 0
    assert bool((flat[rows.predictors].abs().sum(-1) > 0).all())


def test_gradients_of_the_weights_agree_over_the_layouts() -> None:
    grads = {}
    for layout in LAYOUTS:
        model, pairs = tiny_llama(), some_pairs()
        scores = PairScorer(model, EngineConfig(layout=layout)).score(model, pairs)
        (scores.chosen / scores.chosen_lengths - scores.rejected / scores.rejected_lengths).sum().backward()
        grads[layout] = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    torch.testing.assert_close(grads["packed"], grads["plain"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads["shared"], grads["plain"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_single_sequences_and_the_self_check_know_the_mask(layout: str) -> None:
    model, pairs = tiny_llama(), some_pairs()
    scorer = PairScorer(model, EngineConfig(layout=layout))
    together = scorer.score(model, pairs)
    part = scorer.score(model, pairs.select([4, 0]))
    torch.testing.assert_close(part.chosen, together.chosen[[4, 0]], rtol=1e-5, atol=1e-5)
    assert part.chosen_lengths.tolist() == [9, 2]
    masks = [mask for each in pairs.masks or () for mask in each]
    alone = scorer.score_sequences(
        model,
        [prompt for prompt in pairs.prompts for _ in range(2)],
        [completion for each in pairs.completions for completion in each],
        masks=masks,
    )
    both = torch.stack([together.chosen, together.rejected], 1).flatten()
    torch.testing.assert_close(alone.logps.float(), both.detach(), rtol=1e-5, atol=1e-5)
    assert alone.lengths.view(-1, 2).tolist() == scored_lengths(pairs)
    scorer.self_check(model, pairs)


def test_the_reference_of_a_masked_pair_is_not_that_of_the_same_tokens_unmasked() -> None:
    pair = [1, 2], [3, 4], [5, 6]
    # The key of version 0.2, so that what is stored is found again.
    plain = "2ca1d239da8c958f5f65ab2759a16f24900a1698161f98d93bee9a0b31a5699c"
    assert pair_key(*pair).hex() == pair_key(*pair, masks=(None, [1, 1])).hex() == plain
    keys = [
        pair_key(*pair, masks=masks)
        for masks in [(None, None), ([1, 0], None), (None, [1, 0]), ([1, 0], [1, 0]), ([0, 1], None)]
    ]
    assert len({*keys}) == 5
