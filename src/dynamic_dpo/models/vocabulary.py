"""Whether policy and reference have the same tokens: without that their log-probabilities cannot be compared."""

from __future__ import annotations

from typing import Any

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.causal_lm import causal_lm


def check_same_tokens(policy: Any, reference: Any, *, policy_name: str, reference_name: str) -> None:
    """Check that two tokenizers give every token the same number.

    Args:
        policy: The policy's tokenizer.
        reference: The reference's tokenizer.
        policy_name: What the user calls the policy.
        reference_name: What the user calls the reference.

    Raises:
        ModelError: If they do not.
    """
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    if ours != theirs:
        unlike = sum(ours.get(token) != theirs.get(token) for token in ours.keys() | theirs.keys())
        raise _cannot_be_compared(
            f"policy {policy_name!r} and reference {reference_name!r} have different tokenizers "
            f"({len(ours)} and {len(theirs)} tokens, {unlike} not the same)"
        )


def check_same_vocabulary_size(policy: Any, reference: Any) -> None:
    """Check that two models have as many embeddings, where only the models are given.

    Raises:
        ModelError: If they have not, or one is no causal language model.
    """
    ours, theirs = (causal_lm(model).get_input_embeddings().num_embeddings for model in (policy, reference))
    if ours != theirs:
        raise _cannot_be_compared(f"policy and reference have vocabularies of {ours} and {theirs} tokens")


def _cannot_be_compared(difference: str) -> ModelError:
    return ModelError(
        f"{difference}: their log-probabilities cannot be compared. Use the model that training started from as "
        "reference, or another one with the policy's tokenizer"
    )
