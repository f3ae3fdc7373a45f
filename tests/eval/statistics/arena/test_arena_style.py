from __future__ import annotations

import numpy as np
import pytest

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.statistics.arena.style import Style, style_difference, style_of


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", (0, 0, 0)),
        ("# One\n## Two\n###### Six\n", (3, 0, 0)),
        ("#hashtag and 1.5 and - not a list\n####### seven\n", (0, 0, 0)),
        ("1. a\n2. b\n  - c\n* d\n+ e", (0, 5, 0)),
        ("**bold** and __bold__, not *slanted* nor **open\nend**", (0, 0, 2)),
        ("```md\n# no\n- no\n**no**\n```\n# yes", (1, 0, 0)),
    ],
)
def test_markdown_is_counted_outside_of_code(text: str, counts: tuple[int, int, int]) -> None:
    assert style_of(text)[1:] == counts


def test_length_is_counted_with_code_in_tokens_of_four_characters() -> None:
    assert style_of("```\nx = 1\n```").length == 13 / 4


def test_differences_are_those_of_the_published_definitions() -> None:
    own, other = Style(300.0, 6, 3, 0), Style(100.0, 0, 3, 2)
    # Densities a token: 0.02 and 0, 0.01 and 0.03, 0 and 0.02.
    assert style_difference(own, other) == pytest.approx([200 / 400, 0.02 / 1.02, -0.02 / 1.04, -0.02 / 1.02])
    assert style_difference(own, other, markdown="count") == pytest.approx([0.5, 1.0, 0.0, -1.0])


def test_changing_sides_changes_the_sign_and_like_outputs_differ_in_nothing() -> None:
    own, other = style_of("# a\n\n- b\n- c"), style_of("**d**")
    assert np.array_equal(style_difference(own, other), -style_difference(other, own))
    assert np.array_equal(style_difference(own, own), np.zeros(4))
    assert np.array_equal(style_difference(style_of(""), style_of("")), np.zeros(4))


def test_another_unit_of_markdown_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be density or count, got 'tokens'"):
        style_difference(style_of(""), style_of(""), markdown="tokens")  # type: ignore[arg-type]
