"""``evaluate`` from file to report: tiny models, HH rows, a server that speaks OpenAI's protocol, SIGKILL."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_dpo.cli import evaluate, judge
from dynamic_dpo.cli import main as umbrella
from dynamic_dpo.eval.judging.ledger import read_ledger
from helpers_evaluation import KEY, CountingJudge, kill_when, save_models, start, write_config, write_hh_rows


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_hh_rows(tmp_path / "harmless-base.jsonl", 9)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingJudge]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = CountingJudge()
    yield server
    server.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_command_goes_from_rows_to_a_report_and_the_key_is_in_no_file(
    models: dict[str, str],
    rows: Path,
    server: CountingJudge,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    config = write_config(out, models, rows, server.base_url)
    assert evaluate.main(["--config", str(config)]) == 0
    written = files_of(out)
    assert {"prompts.jsonl", "generations.jsonl", "judgements.jsonl", "summary.json", "manifest.json",
            "config.yaml", "report.html", "report.md", "data_report.json"} <= set(written)  # fmt: skip
    printed = capsys.readouterr()
    for content in [*written.values(), config.read_bytes(), printed.out.encode(), printed.err.encode()]:
        assert KEY.encode() not in content
    assert server.keys == {f"Bearer {KEY}"}
    assert max(server.asked.values()) == 1
    records = read_ledger(out / "judgements.jsonl")
    points = {"A": 0.0, "B": 0.0}
    wins = sum({"trained": 1.0, "start": 0.0, None: 0.5}[record.winner] for record in records)
    assert len(records) == 12
    assert f"{wins / 12:.1%}"[:4] in printed.out, points
    assert "I compared both. &lt;b&gt;Mine" in written["report.html"].decode()
    assert "harmless" in written["report.md"].decode()


def test_stages_run_alone_and_the_umbrella_knows_judge(
    models: dict[str, str],
    rows: Path,
    server: CountingJudge,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    config = ["--config", str(write_config(out, models, rows, server.base_url))]
    assert evaluate.main([*config, "--stage", "judge"]) == 2
    assert "nothing of the stage prepare yet" in capsys.readouterr().err
    for stage, file in (("prepare", "prompts.jsonl"), ("generate", "generations.jsonl")):
        assert not (out / file).exists()
        assert evaluate.main([*config, "--stage", stage]) == 0
        assert (out / file).is_file()
    assert not server.asked
    assert umbrella.main(["judge", *config]) == 0
    assert (out / "report.html").is_file()
    before = files_of(out)
    assert evaluate.main([*config, "--stage", "report"]) == 0
    assert files_of(out) == before
    assert evaluate.main(config) == 0
    assert files_of(out) == before
    assert max(server.asked.values()) == 1


def test_a_budget_stop_leaves_a_report_that_says_so_and_exit_code_3(
    models: dict[str, str],
    rows: Path,
    server: CountingJudge,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    config = write_config(out, models, rows, server.base_url)
    argv = ["--config", str(config), "judge.budget.calls=5"]
    assert evaluate.main(argv) == evaluate.BUDGET_STOPPED == 3
    assert "budget of 5 calls" in (out / "report.md").read_text()
    assert "budget of 5 calls" in (out / "report.html").read_text()
    assert sum(server.asked.values()) == 5
    capsys.readouterr()
    assert evaluate.main(["--config", str(config)]) == 0
    assert "budget of" not in (out / "report.md").read_text()
    assert max(server.asked.values()) == 1


def test_money_is_counted_by_the_price_table(
    models: dict[str, str], rows: Path, server: CountingJudge, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    # 100 tokens in at 10 and 10 out at 100 per million: 0.002 a reply; the fourth would pass 0.0075.
    prices = {
        "prices": {"a-judge": {"input": 10, "output": 100}},
        "budget": {"money": 0.0075},
        "concurrency": 1,
    }
    config = write_config(out, models, rows, server.base_url, judge=prices)
    assert evaluate.main(["--config", str(config)]) == 3
    assert sum(server.asked.values()) == 3
    assert [record.cost for record in read_ledger(out / "judgements.jsonl")] == [0.002] * 3


def test_a_function_judges_without_a_server(
    models: dict[str, str], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    config = write_config(out, models, rows, "x")
    text = json.loads(config.read_text())
    text["judge"] = {"kind": "function", "function": "dynamic_dpo.eval.rewards:vader"}
    config.write_text(json.dumps(text))
    assert evaluate.main(["--config", str(config)]) == 0
    # Words like w3 carry no sentiment: every comparison is a tie, half a win.
    assert "50.0" in capsys.readouterr().out


def test_a_reward_model_judges(
    models: dict[str, str], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from tiny import tiny_llama, word_tokenizer

    reward = tmp_path / "reward"
    config = LlamaConfig(**{**tiny_llama().config.to_dict(), "num_labels": 1, "pad_token_id": 0})
    LlamaForSequenceClassification(config).save_pretrained(reward)
    word_tokenizer().save_pretrained(reward)
    out = tmp_path / "out"
    file = write_config(out, models, rows, "x")
    text = json.loads(file.read_text())
    text["judge"] = {"kind": "reward_model", "reward_model": str(reward), "both_orders": False}
    file.write_text(json.dumps(text))
    assert evaluate.main(["--config", str(file)]) == 0
    records = read_ledger(out / "judgements.jsonl")
    assert len(records) == 6
    assert all(record.reason.startswith("score of A") for record in records)
    assert "| reward |" in capsys.readouterr().out


def test_several_judges_of_one_file_are_compared(
    models: dict[str, str], rows: Path, server: CountingJudge, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    judges = {
        "mood": {"kind": "function", "function": "dynamic_dpo.eval.rewards:vader"},
        "second": {"base_url": server.base_url, "gpt4_oracle": {"model": "another-judge"}},
    }
    config = write_config(out, models, rows, server.base_url, judges=judges)
    assert evaluate.main(["--config", str(config)]) == 0
    # Twelve questions to each chat model, by different templates: hh-v1 and that of dialogue-v1.
    assert (len(server.asked), max(server.asked.values())) == (24, 1)
    assert Counter(record.judge for record in read_ledger(out / "judgements.jsonl")) == {
        "a-judge": 12,
        "dynamic_dpo.eval.rewards:vader": 12,
        "another-judge": 12,
    }
    report = (out / "report.md").read_text()
    assert "## Agreement of judges" in report
    assert all(f"| {pair} | 6 |" in report for pair in ("a-judge and mood", "a-judge and second"))
    # A score sees no order, the chat models do.
    assert "| mood | 12 | 0 | sees no order |" in report
    assert "| second | 12 | 0 | sees no order |" not in report
    # Nothing is asked again.
    assert evaluate.main(["--config", str(config)]) == 0
    assert max(server.asked.values()) == 1


def test_what_the_judge_will_lack_is_said_before_any_model_writes(
    models: dict[str, str], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    config = ["--config", str(write_config(out, models, rows, f"http://user:{KEY}@127.0.0.1/v1"))]
    assert evaluate.main(config) == 2
    error = capsys.readouterr().err
    assert "judge.base_url holds a user name or password" in error
    assert KEY not in error
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert evaluate.main([*config, "judge.base_url=http://127.0.0.1/v1"]) == 1
    assert "the judge has no key" in capsys.readouterr().err
    assert evaluate.main([*config, "judge={kind: function, function: no.such:thing}"]) == 2
    assert not out.exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    assert evaluate.main([*config, "--stage", "prepare"]) == 2
    assert "pip install 'dynamic-dpo[eval]'" in capsys.readouterr().err


MISTAKES = {
    "no models": (["models={}"], "at least two models to compare"),
    "no data": (["dataset.name=null"], "dataset.name is required"),
    "missing file": (["dataset.name=./nowhere.jsonl"], "nowhere.jsonl"),
    "unknown key": (["judge.concurency=2"], "did you mean judge.concurrency?"),
    "unused prompt": (["gpt4_oracle.system_prompt=Be harsh."], "has no effect while judge.template is hh-v1"),
    "no price": (["judge.budget.money=1"], "judge.prices has no price for 'a-judge'"),
    "orders of one judge": (["judges.x.both_orders=false"], "unknown key judges.x.both_orders"),
    "two of one name": (["judges.a-judge.template=tldr-v1"], "has the name of the first judge"),
    "no price of another": (
        [
            "judge.budget.money=1",
            "judge.prices.a-judge={input: 1, output: 1}",
            "judges.x.gpt4_oracle.model=y",
        ],
        "judge.prices has no price for 'y'",
    ),
    "no such model": (["models.trained=./nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    case: str, models: dict[str, str], rows: Path, server: CountingJudge, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    overrides, expected = MISTAKES[case]
    config = write_config(tmp_path / "out", models, rows, server.base_url)
    assert evaluate.main(["--config", str(config), *overrides]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert not server.asked


def test_help_lists_stages_keys_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--help-all"]) == 0
    assert judge.main(["--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--stage {prepare,generate,judge,report}" in shown
    assert "judge.both_orders = true" in shown
    assert "3 stopped at the judge's budget" in shown


# ---- killed at random ----


def kill_at_random(times: int, models: dict[str, str], rows: Path, tmp_path: Path, num_prompts: int) -> None:
    server = CountingJudge(seconds=0.01)
    settings = {"dataset": {"max_samples": num_prompts}}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    try:
        process = start(["--config", str(write_config(whole, models, rows, server.base_url, **settings))])
        process.join(120)
        assert process.exitcode == 0
        asked_once = set(server.asked)
        num_events = 2 * num_prompts + len(asked_once)
        server.asked.clear()
        config = write_config(killed, models, rows, server.base_url, **settings)

        def events() -> int:
            path = killed / "generations.jsonl"
            outputs = path.read_bytes().count(b"\n") if path.is_file() else 0
            return outputs + len(server.asked)

        draw = random.Random(times)
        num_killed = 0
        for target in sorted(draw.randrange(num_events) for _ in range(times)):
            num_killed += kill_when(
                start(["--config", str(config)]), lambda target=target: events() >= target
            )
        process = start(["--config", str(config)])
        process.join(120)
        assert process.exitcode == 0
    finally:
        server.close()
    assert num_killed >= times - 1
    assert set(server.asked) == asked_once
    # What was under way at a kill, at most two questions each, may be asked again; nothing else.
    assert sum(server.asked.values()) - len(server.asked) <= 2 * num_killed
    ours, theirs = files_of(killed), files_of(whole)
    created = [json.loads(files["manifest.json"])["created"].encode() for files in (ours, theirs)]
    for name in ("report.html", "report.md", "results.csv", "summary.json", "prompts.jsonl"):
        assert ours[name].replace(created[0], b"") == theirs[name].replace(created[1], b""), name


def test_an_evaluation_killed_at_random_asks_nothing_twice_and_reports_the_same(
    models: dict[str, str], rows: Path, tmp_path: Path
) -> None:
    kill_at_random(5, models, rows, tmp_path, 6)


@pytest.mark.slow
def test_an_evaluation_killed_twenty_times_asks_nothing_twice_and_reports_the_same(
    models: dict[str, str], tmp_path: Path
) -> None:
    kill_at_random(20, models, write_hh_rows(tmp_path / "harmless.jsonl", 40), tmp_path, 30)
