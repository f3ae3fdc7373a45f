"""The structure of the package: small rooms, no circles, and tests where the code is."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import networkx
import pytest

from places import SOURCE, TESTS

ROOMS = sorted(path.parent for path in SOURCE.rglob("__init__.py"))


@pytest.fixture(scope="module")
def imports() -> networkx.DiGraph:
    """Which module imports which, for types alone included."""
    graph = grimp.build_graph("dynamic_dpo", exclude_type_checking_imports=False, cache_dir=None)
    edges = [
        (upper, lower) for upper in graph.modules for lower in graph.find_modules_directly_imported_by(upper)
    ]
    return networkx.DiGraph(edges)


def circles(imports: networkx.DiGraph) -> list[list[str]]:
    return [sorted(group) for group in networkx.strongly_connected_components(imports) if len(group) > 1]


def test_no_modules_import_each_other_in_a_circle(imports: networkx.DiGraph) -> None:
    assert imports.number_of_edges() > 500
    assert circles(imports) == []


def test_a_circle_would_be_found(imports: networkx.DiGraph) -> None:
    bent = imports.copy()
    bent.add_edge("dynamic_dpo.errors", "dynamic_dpo.cli.main")
    assert any("dynamic_dpo.errors" in group for group in circles(bent))


def test_no_folder_holds_more_than_can_be_overlooked() -> None:
    sizes = {str(room.relative_to(SOURCE)): len(list(room.glob("*.py"))) for room in ROOMS}
    assert len(sizes) > 20
    assert {room: size for room, size in sizes.items() if size > 21} == {}
    assert sizes["eval"] <= 12


def test_every_room_has_its_tests_under_the_same_path() -> None:
    places = [TESTS / room.relative_to(SOURCE) for room in ROOMS if room != SOURCE]
    without = [str(place.relative_to(TESTS)) for place in places if not any(place.rglob("test_*.py"))]
    assert without == []


def test_no_two_test_files_share_a_name() -> None:
    # pytest imports them by name alone.
    names = [path.name for path in Path(TESTS).rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_no_test_is_a_race_against_the_clock() -> None:
    # A machine under load would decide. Speed is shown by a benchmark; what never ends, by a bound far away.
    race = re.compile(r"assert .*(?:time|counter|monotonic)(?:_ns)?\(\) - \w+ < ([0-9._]+)$", re.MULTILINE)
    assert race.findall("    assert time.process_time() - start < 5.0\n") == ["5.0"]
    found = {
        str(path.relative_to(TESTS)): bounds
        for path in Path(TESTS).rglob("test_*.py")
        if (bounds := [bound for bound in race.findall(path.read_text()) if float(bound) < 10])
    }
    assert found == {}
