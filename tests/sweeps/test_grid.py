"""Words of a command become the trainings of a sweep."""

from __future__ import annotations

import pytest

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.sweeps.grid import Axis, points_of, split_axes


def test_every_combination_is_one_training_with_a_name_of_its_own() -> None:
    axes, fixed = split_axes(["a.beta=.1,.3", "peft.r=8", "b.rate=1e-6,5e-6,1e-5"])
    assert fixed == ["peft.r=8"]
    points = points_of(axes)
    assert len(points) == len({point.name for point in points}) == 6
    assert points[0].name == "beta=.1,rate=1e-6"
    assert points[-1].overrides == ("a.beta=.3", "b.rate=1e-5")


def test_a_name_hangs_on_its_own_settings_alone() -> None:
    few = {point.name for point in points_of([Axis("a.beta", (".1", ".3"))])}
    many = {point.name for point in points_of([Axis("a.beta", (".03", ".1", ".3"))])}
    assert few < many


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("x.y=[1, 2],[3]", ("[1, 2]", "[3]")),
        ("x.y={a: 1, b: 2},null", ("{a: 1, b: 2}", "null")),
        ("x.y='a,b',c", ("'a,b'", "c")),
        ('x.y="a,b", c', ('"a,b"', "c")),
    ],
)
def test_a_comma_within_brackets_or_quotes_is_part_of_a_value(word: str, values: tuple[str, ...]) -> None:
    assert split_axes([word]) == ([Axis("x.y", values)], [])


def test_same_last_words_are_told_apart_and_names_are_those_of_folders() -> None:
    points = points_of([Axis("a.x", ("1", "2")), Axis("b.x", ("m/n", "o p"))])
    assert all("a.x=" in point.name and "b.x=" in point.name for point in points)
    assert all("/" not in point.name and " " not in point.name for point in points)
    long = points_of([Axis("a.x", ("y" * 300, "y" * 301))])
    assert len({point.name for point in long}) == 2
    assert max(len(point.name) for point in long) < 100


def test_entries_of_a_list_stand_beside_the_grid() -> None:
    points = points_of([Axis("a.x", ("1", "2"))], [{"b.y": "3", "c.z": "4"}, {"b.y": "5"}])
    assert [point.overrides for point in points] == [
        ("b.y=3", "c.z=4", "a.x=1"),
        ("b.y=3", "c.z=4", "a.x=2"),
        ("b.y=5", "a.x=1"),
        ("b.y=5", "a.x=2"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.x=1,,2"], "has an empty value"),
        (["a.x=1,2,1"], "gives 1 twice"),
        (["a.x=1,2", "a.x=3,4"], "a.x is given twice"),
        (["a.x=1,2", "a.x=3"], "a.x is given twice"),
    ],
)
def test_words_that_mean_no_grid_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_axes(words)


def test_trainings_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="a setting with several values"):
        points_of([])
    with pytest.raises(ConfigError, match="in the list and in the grid"):
        points_of([Axis("a.x", ("1", "2"))], [{"a.x": "3"}])
    with pytest.raises(ConfigError, match="is in the sweep twice"):
        points_of([], [{"a.x": "3"}, {"a.x": "3"}])
