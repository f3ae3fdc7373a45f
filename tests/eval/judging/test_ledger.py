"""The ledger of a judge's answers: what it keeps, counts and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.judging.ledger import InvalidReply, JudgeLedger, attempts_path, read_ledger
from dynamic_dpo.eval.judging.spending import Spending
from dynamic_dpo.eval.records import JudgementRecord
from dynamic_dpo.utils.json_lines import JsonLinesFile


def answer(key: str, verdict: str = "A", **rest: Any) -> JudgementRecord:
    return JudgementRecord(key, "p", 0, "judge", "x", "y", verdict, **rest)


def test_answers_and_invalid_replies_survive_closing(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    with JudgeLedger(path) as ledger:
        ledger.append_invalid(InvalidReply("k1", 0, "hm", 10, 1, 0.1))
        ledger.append(answer("k1", "B", attempts=2, prompt_tokens=25, completion_tokens=3, cost=0.3))
        ledger.append_invalid(InvalidReply("k2", 0, "hm", 20, 2, 0.2))
    with JudgeLedger(path) as ledger:
        found = ledger.get("k1")
        assert found is not None
        assert found.verdict == "B"
        assert ledger.get("k2") is None
        assert [reply.reply for reply in ledger.invalid_replies("k2")] == ["hm"]
        # k1's answer counts its invalid reply in: 2 calls there and 1 for k2.
        assert ledger.spent() == Spending(3, 45, 5, 0.5)


def test_of_two_answers_with_one_key_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    lines = [answer("k", "A"), answer("j", "B"), answer("k", "B")]
    path.write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    assert [(a.key, a.verdict) for a in read_ledger(path)] == [("k", "A"), ("j", "B")]
    with JudgeLedger(path) as ledger:
        found = ledger.get("k")
        assert found is not None
        assert found.verdict == "A"
        assert ledger.spent().calls == 2


def test_an_answer_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    with JudgeLedger(path) as ledger:
        ledger.append(answer("k", "A"))
        ledger.append(answer("k", "B"))
    assert len(path.read_text().splitlines()) == 1


def test_a_line_that_is_no_answer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    path.write_text('{"key": "k"}\n')
    with pytest.raises(DataError, match=r"judgements\.jsonl, record 1: this line is no JudgementRecord"):
        JudgeLedger(path)
    path.write_text("")
    attempts_path(path).write_text('{"key": "k"}\n')
    with pytest.raises(DataError, match=r"judgements\.attempts\.jsonl holds a line that is no invalid reply"):
        JudgeLedger(path)
    # The lock is given back after an error.
    attempts_path(path).unlink()
    JudgeLedger(path).close()


def test_a_locked_ledger_gives_both_files_back(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    with JsonLinesFile(attempts_path(path)), pytest.raises(DataError, match="another process"):
        JudgeLedger(path)
    JudgeLedger(path).close()
