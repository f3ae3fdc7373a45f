"""``dynamic-dpo rollout`` from file to training: a tiny model, HH rows, shards, a judge, and what is refused."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import main as umbrella
from dynamic_dpo.cli import rollout, train_dpo
from dynamic_dpo.eval.judging.ledger import read_ledger
from helpers_evaluation import KEY, CountingJudge, write_hh_rows
from helpers_rollouts import files_of, rows_of
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ 'w90 ' if m['role'] == 'user' else 'w91 ' }}{{ m['content'] }}"
    "{{ ' </s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}w91{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(seed=3).save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingJudge]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = CountingJudge()
    yield server
    server.close()


def write_config(folder: Path, model: str, **changes: Any) -> Path:
    """Write a training file with a section on rollouts; JSON is YAML."""
    rows = write_hh_rows(folder / "rows.jsonl", 6)
    section = {
        "output_dir": str(folder / "out"),
        "responses_per_prompt": 3,
        "max_new_tokens": 8,
        "device": "cpu",
        "judge": "function",
        "function": "test_rollout_stages:word_score",
        "filters": {"truncated": False},
    }
    config = {
        "policy_name": model,
        "precision": "fp32",
        "dataset": {"dataset_name": str(rows), "subset": "train"},
        "rollout": section | changes,
    }
    path = folder / "rollout.yaml"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(autouse=True)
def _scores_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "rollouts"))


def test_one_file_serves_the_rollout_its_shards_and_the_training_on_its_pairs(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ["--config", str(write_config(tmp_path, model))]
    assert umbrella.main(["rollout", *config]) == 0
    whole = files_of(tmp_path / "out")
    assert {"config.yaml", "manifest.json", "prompts.jsonl", "outputs.jsonl", "scores.jsonl", "pairs.jsonl",
            "dropped.jsonl", "summary.json", "report.html"} <= set(whole)  # fmt: skip
    shards = [str(tmp_path / f"shard-{n}") for n in (1, 2, 3, 4)]
    for number, folder in enumerate(shards, start=1):
        assert rollout.main([*config, f"rollout.shard={number}/4", f"rollout.output_dir={folder}"]) == 0
    assert rollout.main(["--merge", *shards[::-1], "--out", str(tmp_path / "merged")]) == 0
    merged = files_of(tmp_path / "merged")
    assert merged["pairs.jsonl"] == whole["pairs.jsonl"] != b""
    # The merged folder goes on like any other, by the same file.
    assert rollout.main([*config, f"rollout.output_dir={tmp_path / 'merged'}"]) == 0
    assert files_of(tmp_path / "merged")["pairs.jsonl"] == whole["pairs.jsonl"]

    trained = tmp_path / "trained"
    training = [
        f"dataset.dataset_name={tmp_path / 'out'}",
        "dataset.generated_data=true",
        "dataset.val_ratio=0",
        f"dpo_training.save_dir={trained}",
        "dpo_training.batch_size=2",
        "dpo_training.gradient_accumulation=1",
        "dpo_training.eval_steps=null",
    ]
    assert train_dpo.main([*config, *training]) == 0
    assert (trained / "model.safetensors").is_file()
    report = json.loads((trained / "data_report.json").read_text())
    assert (report["kind"], report["train"]["pairs"]) == (
        "sampled",
        len(rows_of(tmp_path / "out" / "pairs.jsonl")),
    )


def test_a_judge_is_asked_in_both_orders_within_its_budget_and_its_key_is_in_no_file(
    model: str, server: CountingJudge, tmp_path: Path
) -> None:
    oracle = {
        "model": "a-judge",
        "base_url": server.base_url,
        "template": "hh-v1",
        "concurrency": 1,
        "max_comparisons": 2,
        "prices": {"a-judge": {"input": 10, "output": 100}},
    }
    path = write_config(tmp_path, model, judge="gpt4_oracle", function=None, gpt4_oracle=oracle)
    config = ["--config", str(path)]
    assert rollout.main([*config, "rollout.gpt4_oracle.budget.calls=5"]) == rollout.BUDGET_STOPPED == 3
    assert sum(server.asked.values()) == 5
    assert "budget of 5 calls" in (tmp_path / "out" / "report.html").read_text()
    assert rollout.main(config) == 0
    assert max(server.asked.values()) == 1
    records = read_ledger(tmp_path / "out" / "judgements.jsonl")
    assert {(r.first, r.second) for r in records} == {(r.second, r.first) for r in records}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    # Two comparisons a prompt, both orders, 0.002 a reply.
    assert summary["judging"]["num_judgements"] == 6 * 2 * 2
    assert summary["judging"]["cost"] == pytest.approx(0.002 * len(server.asked))
    for content in files_of(tmp_path / "out").values():
        assert KEY.encode() not in content


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"judge": "reward_model", "function": None}, "rollout.reward_model is required"),
        ({"judge": "gpt4_oracle"}, "rollout.function has no effect while rollout.judge is gpt4_oracle"),
        ({"function": "no.such:function"}, "cannot import 'no.such'"),
        ({"judge": "none", "function": None}, "rollout.pairs.rule best_worst needs scores"),
        ({"weak_model": "x", "pairs": {"rule": "strong_weak"}}, "rollout.judge has no effect on"),
        ({"shard": "3/2"}, "rollout.shard must be i/n"),
        ({"pairs": {"rule": "threshold"}}, "min_gap must be greater than 0"),
        ({"push_to_hub": True}, "rollout.hub_dataset_id is required"),
        ({"filters": {"refusals": "missing.txt"}}, "cannot be read"),
        ({"scorers": {"a": {"weight": 2}}}, "or reward_model must be given"),
        ({"max_new_tokens": 2, "min_new_tokens": 4}, "rollout.max_new_tokens must be at least"),
    ],
)
def test_what_cannot_be_carried_out_is_said_before_anything_is_written(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    assert rollout.main(["--config", str(write_config(tmp_path, model, **changes))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_changed_sampling_is_refused_and_the_folder_stays_as_it_was(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(write_config(tmp_path, model))]
    assert rollout.main([*config, "--stage", "prepare"]) == 0
    before = files_of(tmp_path / "out")
    assert rollout.main([*config, "rollout.temperature=0.5"]) == 2
    assert "policy.temperature was 1.0, is 0.5" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == before


def test_a_full_disk_ends_in_advice_and_the_same_command_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(write_config(tmp_path, model))]
    assert rollout.main([*config, f"rollout.output_dir={tmp_path / 'whole'}"]) == 0
    write, left = os.write, [12]

    def full(file: int, data: Any) -> int:
        left[0] -= file > 2
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    for room in (3, 12, 8):
        left[0] = room
        monkeypatch.setattr(os, "write", full)
        assert rollout.main(config) == 1
        monkeypatch.setattr(os, "write", write)
        assert "free some space" in capsys.readouterr().err
    assert rollout.main(config) == 0
    whole, ours = files_of(tmp_path / "whole"), files_of(tmp_path / "out")
    for name in ("outputs.jsonl", "scores.jsonl", "pairs.jsonl", "report.html"):
        assert ours[name] == whole[name]


def test_merge_says_what_it_needs(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(write_config(tmp_path, model))]
    for argv, said in (
        (["--merge", "a"], "--merge needs --out"),
        (["--merge", str(tmp_path / "none"), "--out", "x"], "is no shard of a rollout"),
        ([*config, "--merge", "a", "--out", "x"], "--merge takes the settings of the shards"),
        ([*config, "--out", "x"], "--out goes with --merge"),
    ):
        assert rollout.main(argv) == 2
        assert said in capsys.readouterr().err


def test_pairs_are_pushed_to_the_hub(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    pushed: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, **how: Any) -> Any:
            if name == "me/forbidden":
                raise OSError("403 Forbidden")
            pushed["repo"] = (name, how["repo_type"], how["private"])
            return type("Url", (str,), {"repo_id": name})(f"https://hub/datasets/{name}")

        def upload_file(
            self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, repo_type: str
        ) -> None:
            pushed[path_in_repo] = (repo_id, repo_type, Path(path_or_fileobj).read_bytes())

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    config = ["--config", str(write_config(tmp_path, model, push_to_hub=True, hub_dataset_id="me/pairs"))]
    assert rollout.main(config) == 0
    assert pushed["repo"] == ("me/pairs", "dataset", True)
    assert pushed["pairs.jsonl"] == ("me/pairs", "dataset", (tmp_path / "out" / "pairs.jsonl").read_bytes())
    assert rollout.main([*config, "rollout.hub_dataset_id=me/forbidden"]) == 2
    assert "could not be pushed to 'me/forbidden': 403 Forbidden" in capsys.readouterr().err


def test_the_help_names_every_key_of_a_rollout(capsys: pytest.CaptureFixture[str]) -> None:
    assert rollout.main(["--help-all"]) == 0
    shown = capsys.readouterr().out
    assert "--merge DIR" in shown
    for key in ("rollout.pairs.rule", "rollout.filters.refusals", "rollout.gpt4_oracle.max_comparisons"):
        assert f"  {key} = " in shown
