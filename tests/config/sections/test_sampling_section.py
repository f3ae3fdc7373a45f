"""The section on samples: from a file to what a trainer takes, and what is refused at once."""

from __future__ import annotations

from typing import Any

import pytest

from dynamic_dpo.cli.build_training import build_sampling
from dynamic_dpo.config import apply_overrides, get_training_config
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.runs.samples import SamplingConfig


def read(section: dict[str, Any] | None, *, as_chat: bool = False) -> Any:
    return build_sampling(get_training_config({"policy_name": "m", "sampling": section}), as_chat=as_chat)


def test_a_file_gives_the_settings_of_the_component() -> None:
    assert read(None) is None
    assert get_training_config({"policy_name": "m"}).sampling is None
    assert read({}).settings == SamplingConfig()
    assert (read({}).prompts, read({}).scorers) == (None, {})
    given = read({"every": 50, "max_new_tokens": 32, "temperature": 0, "seed": 3, "num_prompts": 2})
    assert given.settings == SamplingConfig(50, 2, 32, 0, seed=3)
    settings = apply_overrides({"policy_name": "m"}, ["sampling.every=7"])
    assert build_sampling(get_training_config(settings), as_chat=False).settings.every == 7  # type: ignore[union-attr]


def test_texts_are_turns_of_a_chat_or_continued_as_they_stand() -> None:
    assert read({"prompts": ["Why?"]}).prompts == ["Why?"]
    assert read({"prompts": ["Why?"]}, as_chat=True).prompts == [[{"role": "user", "content": "Why?"}]]


def test_a_scorer_is_a_function_or_a_reward_model() -> None:
    scorers = {"short": {"function": "builtins:len"}, "good": {"reward_model": "a/model"}}
    found = read({"scorers": scorers}).scorers
    assert {name: type(one).__name__ for name, one in found.items()} == {
        "short": "FunctionScorer",
        "good": "RewardModelScorer",
    }


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"evry": 3}, "did you mean sampling.every?"),
        ({"every": 0}, "sampling.every must be at least 1, got 0"),
        ({"top_p": 1.5}, "sampling.top_p must lie in (0, 1], got 1.5"),
        ({"prompts": []}, "sampling.prompts must hold texts that are not blank"),
        ({"prompts": ["a", " \u200b"]}, "sampling.prompts must hold texts that are not blank"),
        ({"scorers": {"a": {}}}, "function or reward_model must be given, and not both"),
        (
            {"scorers": {"a": {"function": "builtins:len", "weight": 2}}},
            "unknown key sampling.scorers.a.weight",
        ),
        ({"scorers": {"a": {"function": "no.such:thing"}}}, "cannot import 'no.such'"),
    ],
)
def test_what_cannot_be_is_said_with_its_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(section)
    assert message in str(refused.value)
