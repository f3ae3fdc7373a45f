"""Policy and reference must have the same tokens, told by their tokenizers or by the models alone."""

from __future__ import annotations

from typing import Any

import pytest

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.vocabulary import check_same_tokens, check_same_vocabulary_size
from tiny import VOCAB, tiny_gpt2, tiny_llama, word_tokenizer

NAMES = {"policy_name": "ours", "reference_name": "theirs"}
ADVICE = "their log-probabilities cannot be compared. Use the model that training started from"


def with_another_token() -> Any:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["another"])
    return tokenizer


class Swapped:
    """The same words, two of them under each other's number."""

    def get_vocab(self) -> dict[str, int]:
        vocab = word_tokenizer().get_vocab()
        return {**vocab, "w0": vocab["w1"], "w1": vocab["w0"]}


def test_equal_tokens_are_accepted_whatever_the_rest_of_the_tokenizer() -> None:
    check_same_tokens(word_tokenizer(), word_tokenizer(template="{{ messages }}"), **NAMES)
    check_same_vocabulary_size(tiny_llama(), tiny_gpt2())


@pytest.mark.parametrize(
    ("policy", "reference", "counts"),
    [
        (word_tokenizer(), with_another_token(), "96 and 97 tokens, 1 not the same"),
        (with_another_token(), word_tokenizer(), "97 and 96 tokens, 1 not the same"),
        (word_tokenizer(), Swapped(), "96 and 96 tokens, 2 not the same"),
    ],
)
def test_a_token_that_only_one_has_or_that_has_another_number_is_counted(
    policy: Any, reference: Any, counts: str
) -> None:
    with pytest.raises(ModelError) as error:
        check_same_tokens(policy, reference, **NAMES)
    assert f"policy 'ours' and reference 'theirs' have different tokenizers ({counts})" in str(error.value)
    assert ADVICE in str(error.value)


def test_models_with_other_numbers_of_embeddings_are_refused() -> None:
    larger = tiny_llama()
    larger.resize_token_embeddings(VOCAB + 4)
    with pytest.raises(ModelError) as error:
        check_same_vocabulary_size(tiny_llama(), larger)
    assert f"vocabularies of {VOCAB} and {VOCAB + 4} tokens: {ADVICE}" in str(error.value)
