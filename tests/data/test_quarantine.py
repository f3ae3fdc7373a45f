"""The quarantine: counts, file, the largest share accepted."""

import json
import re

import pytest

from dynamic_dpo.data.ledger import QUARANTINE_FILE, Ledger
from dynamic_dpo.data.quarantine import REASONS, Quarantine
from dynamic_dpo.errors import ConfigError, DataError
from places import ROOT


def filled(*reasons, source="rows.jsonl"):
    quarantine = Quarantine(source)
    for row, reason in enumerate(reasons):
        quarantine.add(row, reason, f"row {row}")
    return quarantine


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_counts_come_most_frequent_first():
    counts = filled("not_json", "not_text", "not_text").counts()
    assert list(counts.items()) == [("not_text", 2), ("not_json", 1)]


def test_empty_quarantine_says_so():
    assert filled().summary(total=10) == "0 of 10 rows of rows.jsonl (0.0%) quarantined"


def test_file_lists_rows_in_order_with_reason_and_meaning(tmp_path):
    quarantine = filled("not_text")
    quarantine.add(-1, "not_json", "half \ud83d a pair")
    records = read(quarantine.write(tmp_path / "new" / "q.jsonl"))
    assert records == [
        {
            "source": "rows.jsonl",
            "row": -1,
            "reason": "not_json",
            "excerpt": "half \\ud83d a pair",
            "meaning": REASONS["not_json"],
        },
        {
            "source": "rows.jsonl",
            "row": 0,
            "reason": "not_text",
            "excerpt": "row 0",
            "meaning": REASONS["not_text"],
        },
    ]


def test_long_excerpts_are_cut():
    quarantine = Quarantine()
    quarantine.add(0, "not_text", "x" * 10_000)
    assert len(next(iter(quarantine)).excerpt) == 200


@pytest.mark.parametrize(("max_share", "stops"), [(0.0, True), (0.19, True), (0.2, False), (1.0, False)])
def test_share_above_the_limit_stops_and_names_counts_file_and_a_row(max_share, stops):
    quarantine = filled("not_text", "empty_chosen")
    if not stops:
        quarantine.raise_if_above(max_share, 10)
        return
    with pytest.raises(DataError) as caught:
        quarantine.raise_if_above(max_share, 10, path="runs/quarantine.jsonl")
    message = str(caught.value)
    for part in ("2 of 10 rows", "not_text 1, empty_chosen 1", "(row 0: 'row 0')", "runs/quarantine.jsonl"):
        assert part in message
    assert "raise quarantine_max_share" in message


def test_nothing_left_is_an_error_whatever_the_share():
    with pytest.raises(DataError, match="No row is left"):
        filled("not_text").raise_if_above(1.0, 1)


def test_empty_quarantine_never_stops():
    filled().raise_if_above(0.0, 0)


def test_ledger_writes_all_sources_even_when_it_stops(tmp_path):
    (tmp_path / QUARANTINE_FILE).write_text("left from an earlier run\n")

    def prepare():
        with Ledger(0.1, tmp_path) as ledger:
            ledger.open_source("first", 100).add(3, "not_json", "x")
            ledger.open_source("second", 2).add(1, "not_text", "y")

    with pytest.raises(DataError, match=r"1 of 2 rows of second.*quarantine\.jsonl"):
        prepare()
    records = read(tmp_path / QUARANTINE_FILE)
    assert [(record["source"], record["row"]) for record in records] == [("first", 3), ("second", 1)]


def test_ledger_lets_other_errors_pass(tmp_path):
    def prepare():
        with Ledger(0.0, tmp_path) as ledger:
            ledger.open_source("first", 1).add(0, "not_json", "x")
            raise KeyError

    with pytest.raises(KeyError):
        prepare()
    assert [record["row"] for record in read(tmp_path / QUARANTINE_FILE)] == [0]


def test_share_outside_zero_to_one_is_an_error():
    with pytest.raises(ConfigError, match="quarantine_max_share"):
        Ledger(5, None)


def test_documentation_lists_exactly_the_reasons():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text, flags=re.MULTILINE))
    assert {reason: table.get(reason) for reason in REASONS} == REASONS
