"""Whether policy and reference have the same tokens: without that their log-probabilities cannot be compared."""

from __future__ import annotations

from typing import Any

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.adapters import find_model
from dynamic_dpo.models.causal_lm import causal_lm
from dynamic_dpo.models.sources import ModelSource, load_tokenizer


def check_same_tokens(tokenizer: Any, reference: str) -> None:
    """Raise a `ModelError` unless a reference has the same tokens as a policy's tokenizer."""
    other = load_tokenizer(find_model(reference).tokenizer)
    if other.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"policy and reference have different tokenizers ({len(tokenizer)} and {len(other)} tokens): their "
            f"log-probabilities cannot be compared; is {reference} what training started from?"
        )


def check_tokenizers_agree(policy: ModelSource, tokenizer: Any, reference: ModelSource) -> None:
    """Raise `ModelError` where policy and reference would read the same text as other tokens."""
    ours, theirs = tokenizer.get_vocab(), load_tokenizer(reference).get_vocab()
    if ours != theirs:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        raise ModelError(
            f"policy {policy.name!r} and reference {reference.name!r} have different tokenizers ({differing} of "
            f"{len(ours)} tokens differ): their log-probabilities cannot be compared. Use a reference of the "
            "same family"
        )


def check_same_vocabulary(model: Any, reference: Any) -> None:
    """Raise a `ModelError` unless policy and reference have as many embeddings."""
    ours = causal_lm(model).get_input_embeddings().num_embeddings
    theirs = causal_lm(reference).get_input_embeddings().num_embeddings
    if ours != theirs:
        raise ModelError(
            f"policy and reference have vocabularies of {ours} and {theirs} tokens: their log-probabilities "
            "cannot be compared. Use a reference with the policy's tokenizer"
        )
