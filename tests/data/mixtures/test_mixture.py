"""Several sets as one: shares, limits, one split, the rows' places, and each set's margins in the log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.cli import train_dpo
from dynamic_dpo.config import get_training_config
from dynamic_dpo.data.mixtures.mixture import MixtureSet, epoch_counts, prepare_mixture
from dynamic_dpo.errors import ConfigError, DataError
from helpers_rollouts import rows_of
from helpers_tokenizers import CHATML, make_tokenizer
from tiny import tiny_llama, word_tokenizer


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def text(word: str, count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"{word} {n}", "chosen": f"yes {n}", "rejected": f"no {n}"}
        for n in range(start, start + count)
    ]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, MixtureSet]:
    strength = [
        {
            "prompt": f"two {n}",
            "response_1": f"a {n}",
            "response_2": f"b {n}",
            "preference_strength": -1 if n % 2 else 2,
        }
        for n in range(900)
    ]
    named = [{"task": f"three {n}", "good": f"x {n}", "bad": f"y {n}"} for n in range(500)]
    return {
        "plain": MixtureSet(write(tmp_path / "plain.jsonl", text("one", 600)), weight=3),
        "strength": MixtureSet(write(tmp_path / "strength.jsonl", strength), weight=2),
        "named": MixtureSet(
            write(tmp_path / "named.jsonl", named),
            weight=1,
            columns={"prompt": "task", "chosen": "good", "rejected": "bad"},
        ),
    }


def prepare(sets: dict[str, MixtureSet], **settings: Any) -> Any:
    tokenizer = make_tokenizer(chat_template=CHATML)
    return prepare_mixture(
        sets, tokenizer, **{"chat_template": True, "max_length": 64, **settings}
    ), tokenizer


def owners(prepared: Any) -> dict[str, int]:
    """Count the pairs of each set by where their rows stand."""
    starts = {name: figures["first_row"] for name, figures in prepared.report["sets"].items()}
    found = dict.fromkeys(starts, 0)
    for row in prepared.train["row"]:
        found[max((name for name in starts if starts[name] <= row), key=lambda name: starts[name])] += 1
    return found


def test_sets_have_the_shares_that_their_weights_ask_for(sets: dict[str, MixtureSet]) -> None:
    prepared, _ = prepare(sets, val_ratio=0.1)
    found = owners(prepared)
    total = len(prepared.train)
    assert {name: figures["drawn"] for name, figures in prepared.report["sets"].items()} == found
    for name, share in (("plain", 3 / 6), ("strength", 2 / 6), ("named", 1 / 6)):
        assert found[name] / total == pytest.approx(share, abs=0.01)
    # The set that is scarcest for its weight is used up.
    assert found["plain"] == prepared.report["sets"]["plain"]["pairs"]
    assert len({*prepared.train["row"]}) == total


def test_each_set_is_read_in_its_own_shape_and_rows_are_found_again(sets: dict[str, MixtureSet]) -> None:
    prepared, tokenizer = prepare(sets, val_ratio=0)
    starts = {name: figures["first_row"] for name, figures in prepared.report["sets"].items()}
    assert starts == {"plain": 0, "strength": 600, "named": 1500}
    for row in prepared.train:
        prompt, chosen, rejected = (
            tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        if row["row"] < 600:
            n = row["row"]
            assert (f"one {n}<" in prompt, f"yes {n}<" in chosen, f"no {n}<" in rejected) == (
                True,
                True,
                True,
            )
        elif row["row"] < 1500:
            n = row["row"] - 600
            better, worse = ("a", "b") if n % 2 else ("b", "a")
            assert (f"two {n}<" in prompt, f"{better} {n}<" in chosen, f"{worse} {n}<" in rejected) == (
                True,
            ) * 3
        else:
            n = row["row"] - 1500
            assert (f"three {n}<" in prompt, f"x {n}<" in chosen, f"y {n}<" in rejected) == (True, True, True)


def test_the_draw_hangs_on_seed_and_set_alone(sets: dict[str, MixtureSet]) -> None:
    first, _ = prepare(sets, val_ratio=0)
    again, _ = prepare(sets, val_ratio=0)
    other, _ = prepare(sets, val_ratio=0, seed=7)
    assert first.train["row"] == again.train["row"]
    assert first.train["row"] != other.train["row"]


def test_without_weights_all_pairs_are_taken_and_a_limit_is_kept(sets: dict[str, MixtureSet]) -> None:
    free = {name: one._replace(weight=None) for name, one in sets.items()}
    free["strength"] = free["strength"]._replace(limit=50)
    prepared, _ = prepare(free, val_ratio=0)
    assert owners(prepared) == {"plain": 600, "strength": 50, "named": 500}


def test_a_prompt_of_two_sets_is_on_one_side(tmp_path: Path) -> None:
    sets = {
        "a": MixtureSet(write(tmp_path / "a.jsonl", text("one", 200))),
        "b": MixtureSet(
            write(tmp_path / "b.jsonl", [{**row, "chosen": "else"} for row in text("one", 200, 100)])
        ),
    }
    prepared, tokenizer = prepare(sets, val_ratio=0.3)
    sides = [
        {tokenizer.decode(ids) for ids in part["prompt_ids"]}
        for part in (prepared.train, prepared.validation)
    ]
    assert not sides[0] & sides[1]
    assert len(prepared.train) + len(prepared.validation) == 400
    assert sum(figures["validation"] for figures in prepared.report["sets"].values()) == len(
        prepared.validation
    )


def test_quarantined_rows_are_named_by_their_set(tmp_path: Path) -> None:
    bad = [*text("one", 30), {"prompt": "x", "chosen": "", "rejected": "no"}]
    sets = {
        "good": MixtureSet(write(tmp_path / "good.jsonl", text("two", 30))),
        "bad": MixtureSet(write(tmp_path / "bad.jsonl", bad)),
    }
    prepare(sets, val_ratio=0, report_dir=tmp_path)
    [entry] = rows_of(tmp_path / "quarantine.jsonl")
    assert (entry["source"].split(":")[0], entry["row"], entry["reason"]) == ("bad", 30, "empty_chosen")


def test_rows_with_tools_and_without_stand_side_by_side(tmp_path: Path) -> None:
    template = "{% if tools %}tools {{ tools[0]['name'] }} {% endif %}" + CHATML
    with_tools = [{**row, "tools": [{"name": "w"}]} for row in text("one", 5)]
    sets = {
        "plain": MixtureSet(write(tmp_path / "plain.jsonl", text("two", 5))),
        "tools": MixtureSet(write(tmp_path / "tools.jsonl", with_tools)),
    }
    tokenizer = make_tokenizer(chat_template=template)
    prepared = prepare_mixture(sets, tokenizer, chat_template=True, val_ratio=0)
    shown = [tokenizer.decode(ids).startswith("tools w") for ids in prepared.train["prompt_ids"]]
    assert shown == [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ({"a": 10, "b": 10}, {"a": 0.1, "b": 0.3}, {"a": 3, "b": 10}),
        ({"a": 0, "b": 10}, {"a": 1.0, "b": 1.0}, {"a": 0, "b": 0}),
        ({"a": 7}, {"a": 5.0}, {"a": 7}),
    ],
)
def test_counts_of_an_epoch(
    sizes: dict[str, int], weights: dict[str, float | None], counts: dict[str, int]
) -> None:
    assert epoch_counts(sizes, weights) == counts


def test_text_and_conversations_do_not_mix(tmp_path: Path) -> None:
    talk = [{"prompt": [{"role": "user", "content": "q"}], "chosen": "yes", "rejected": "no"}]
    sets = {
        "text": MixtureSet(write(tmp_path / "text.jsonl", text("one", 3))),
        "talk": MixtureSet(write(tmp_path / "talk.jsonl", talk)),
    }
    with pytest.raises(DataError, match=r"text in text, messages in talk: set dataset\.chat_template=true"):
        prepare(sets, chat_template=False)
    assert len(prepare(sets, val_ratio=0)[0].train) == 4


def test_settings_that_contradict_each_other_are_refused(sets: dict[str, MixtureSet]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.mixture: named has no weight and others have"):
        prepare({**sets, "named": sets["named"]._replace(weight=None)})
    one = {"dataset_name": "a"}
    for dataset, said in (
        (
            {"dataset_name": "a", "mixture": {"x": one}},
            "dataset.mixture and dataset.dataset_name cannot both",
        ),
        (
            {"mixture": {"x": one, "y": {**one, "weight": 1}}},
            "dataset.mixture must give every set a weight, or none",
        ),
        ({"mixture": {"x": one}, "eval_dataset_name": "b"}, "dataset.eval_dataset_name has no effect beside"),
    ):
        with pytest.raises(ConfigError, match=said):
            get_training_config({"policy_name": "m", "dataset": dataset})


def config_of(folder: Path, **training: Any) -> list[str]:
    model = folder / "model"
    tiny_llama(seed=3).save_pretrained(model)
    word_tokenizer().save_pretrained(model)
    sets = {
        "a": {"dataset_name": write(folder / "a.jsonl", [
            {"prompt": f"w{n} w{n + 1}", "chosen": f" w{n + 2}", "rejected": " w3"} for n in range(20)
        ]), "weight": 2},
        "b": {"dataset_name": write(folder / "b.jsonl", [
            {"prompt": f"w{n} w{n}", "chosen": " w5", "rejected": f" w{n + 7}"} for n in range(20)
        ]), "weight": 1},
    }  # fmt: skip
    settings = {
        "policy_name": str(model),
        "precision": "fp32",
        "dataset": {"mixture": sets, "val_ratio": 0},
        "dpo_training": {
            "batch_size": 3, "gradient_accumulation": 1, "learning_rate": 1e-2, "warmup_steps": 0, "log_steps": 2,
            "eval_steps": None, "save_steps": 5, "use_cpu": True, "save_dir": str(folder / "run"), **training,
        },
        "method": {"name": "dpo"},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))
    return ["--config", str(path)]


def test_the_log_has_each_sets_margins_and_a_resumed_run_the_same_rows(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_dpo.main(config_of(tmp_path)) == 0
    whole = json.loads((run / "trainer_state.json").read_text())["log_history"]
    entries = [entry for entry in whole if "loss" in entry]
    assert len(entries) == 5
    for entry in entries:
        means = [entry[f"margins_by_set/{name}"] for name in "ab" if f"margins_by_set/{name}" in entry]
        assert means
        assert min(means) <= entry["margins/mean"] + 1e-6
        assert max(means) >= entry["margins/mean"] - 1e-6
    # As if it was killed behind step 5, between two log lines.
    for path in run.iterdir():
        if path.name != "checkpoint-5":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train_dpo.main(config_of(tmp_path, resume=True)) == 0
    resumed = json.loads((run / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "margins_by_set/a", "margins_by_set/b", "margins/mean")
    assert [[entry.get(name) for name in names] for entry in resumed if "loss" in entry] == [
        [entry.get(name) for name in names] for entry in entries
    ]
