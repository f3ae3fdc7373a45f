"""Difficulties in files: AlpacaEval's tables by place, our own by prompt, and what is malformed is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import (
    Difficulties,
    read_difficulties,
    write_difficulties,
)

PROMPTS = ["p-zero", "p-one", "p-two"]


def stored(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_own_difficulties_come_back(tmp_path: Path) -> None:
    known = Difficulties({"p-one": 0.1 + 0.2, "p-two": -3.5}, length_effect=1.9, num_models=30)
    back = read_difficulties(write_difficulties(tmp_path / "d.json", known), PROMPTS)
    assert (back.values, back.length_effect, back.baseline) == (known.values, 1.9, None)
    assert back.num_models is None


@pytest.mark.parametrize(
    "text",
    [
        "index,instruction_difficulty\n2,-1.5\n0,0.25\n",
        ",0\n2,-1.5\n0,0.25\n",
        "\ufeffindex,other,instruction_difficulty\n2,x,-1.5\n0,y,0.25\n",
    ],
)
def test_a_table_of_places_belongs_to_the_prompts_in_the_sets_order(tmp_path: Path, text: str) -> None:
    found = read_difficulties(stored(tmp_path, text), PROMPTS)
    assert found.values == {"p-two": -1.5, "p-zero": 0.25}
    assert (found.length_effect, found.baseline) == (None, None)


def test_a_table_with_the_baseline_at_other_lengths_gives_its_rows(tmp_path: Path) -> None:
    header = "model,index,std_delta_len,preference,instruction_difficulty,not_gamed_baseline\n"
    rows = "concise,0,1.25,0.2,0.5,False\nverbose,0,-0.5,0.75,0.5,False\nown,1,0.1,0.5,2.0,True\n"
    found = read_difficulties(stored(tmp_path, header + rows), PROMPTS)
    assert found.values == {"p-zero": 0.5, "p-one": 2.0}
    assert found.baseline is not None
    # AlpacaEval counts how much shorter the other output is: the concise one is 1.25 deviations shorter.
    assert found.baseline.longer.tolist() == [-1.25, 0.5]
    assert found.baseline.preference.tolist() == [0.2, 0.75]
    assert found.baseline.difficulty.tolist() == [0.5, 0.5]
    assert found.baseline.place.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "expected a table with the columns 'index' and 'instruction_difficulty'"),
        ("t.csv", "index,instruction_difficulty\n", "the table has no rows"),
        ("t.csv", "index,a,b\n0,1,2\n", "expected a table with the columns"),
        ("t.csv", "index,instruction_difficulty\n3,1\n", "line 2: there is no place 3 among the 3 prompts"),
        (
            "t.csv",
            "index,instruction_difficulty\n0,1\n1,nan\n",
            "line 3: expected a finite number, got 'nan'",
        ),
        ("t.csv", "index,instruction_difficulty\n0\n", "line 2: "),
        (
            "t.csv",
            "index,std_delta_len,preference,instruction_difficulty,not_gamed_baseline\n0,1,1.5,0,False\n",
            "line 2: 'preference' must lie in \\[0, 1\\], got '1.5'",
        ),
        ("t.json", "[1]", "expected an object with 'length_effect'"),
        ("t.json", '{"length_effect": null, "instruction_difficulty": {"p": "x"}}', "holds no difficulties"),
    ],
)
def test_malformed_files_are_refused_by_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_difficulties(stored(tmp_path, text, name), PROMPTS)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_difficulties(tmp_path / "absent.csv", PROMPTS)
