"""What an inspection finds in sets whose faults are known, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.cli import inspect_data
from dynamic_dpo.inspection.figures import Inspector, described
from dynamic_dpo.inspection.overlap import PromptIndex
from dynamic_dpo.inspection.similarity import ches, pair_similarities
from dynamic_dpo.inspection.texts import PairTexts, without_frame
from tiny import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ 'w90 ' if m['role'] == 'user' else 'w91 ' }}{{ m['content'] }}"
    "{{ ' </s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}w91{% endif %}"
)


class NoSpecialTokens:
    all_special_tokens = ("</s>",)


def texts(*pairs: tuple[str, str, str]) -> list[PairTexts]:
    return [PairTexts(row, *pair, *(len(text.split()) for text in pair)) for row, pair in enumerate(pairs)]


# ---- what is counted ----


def test_repetitions_contradictions_and_equal_answers_are_told_apart() -> None:
    found = Inspector(NoSpecialTokens()).count(
        texts(
            ("a dog", "it barks </s>", "it sings </s>"),
            ("a cat", "it purrs", "it barks"),
            ("a dog", "it  barks", "it sings"),
            ("a dog", "it sings", "it barks"),
            ("a cow", "It moos!", "it moos"),
            ("a cow", "it moos", "it moos"),
        )
    )
    assert (found.pairs, found.prompts) == (6, 3)
    assert found.repeated == [(2, 0)]
    assert found.contradicted == [(3, 0)]
    assert found.equal == [4, 5]


def test_lengths_and_who_is_longer() -> None:
    found = Inspector(NoSpecialTokens()).count(
        texts(("p", "one two three", "one"), ("p q", "one", "one two"), ("p", "one two", "three four"))
    )
    assert found.lengths == {"prompt": [1, 2, 1], "chosen": [3, 1, 2], "rejected": [1, 2, 2]}
    assert found.gaps == [2, -1, 0]
    assert found.longer_chosen == pytest.approx(1.5 / 3)


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I'm sorry, but that is not something I do.", True),
        ("I cannot help with that.", True),
        ("I can’t provide this.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I cannot believe how good it was!", False),
        ("Sorry for the delay: here it is.", False),
        ("Here it is. " * 40 + "I cannot help with that.", False),
    ],
)
def test_a_refusal_is_told_by_how_an_answer_begins(text: str, is_refusal: bool) -> None:
    found = Inspector(NoSpecialTokens()).count(texts(("p", text, "no"), ("p", "yes", text)))
    assert found.refusals_chosen == ([0] if is_refusal else [])
    assert found.refusals_rejected == ([1] if is_refusal else [])


def test_patterns_of_ones_own_take_the_place_of_the_english_ones() -> None:
    pairs = texts(("p", "Das kann ich leider nicht", "I cannot help with that"))
    found = Inspector(NoSpecialTokens(), refusals=["leider nicht"]).count(pairs)
    assert (found.refusals_chosen, found.refusals_rejected) == ([0], [])


def test_distributions() -> None:
    assert described([]) is None
    assert described([7]) == dict.fromkeys(("mean", "min", "p25", "median", "p75", "p95", "max"), 7)
    figures = described(list(range(101)))
    assert figures is not None
    assert (figures["p25"], figures["p95"], figures["max"]) == (25, 95, 100)


# ---- overlaps ----

LONG = "Why does the moon look larger near the horizon than high in the sky?"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"Please tell me: {LONG.lower()}", True),
        ("why does the moon look LARGER, near the horizon", True),
        ("why does the moon look larger near", False),
        ("the sky is larger than the moon", False),
        ("Boil an egg!", True),
        ("how do I boil an egg", True),
        ("how do I boil an egg in a pot without any water", False),
        ("月亮为什么在地平线附近看起来更大", True),
        ("月亮为什么", False),
    ],
)
def test_a_prompt_is_found_by_a_run_of_words_and_a_short_one_where_all_of_it_stands(
    text: str, found: bool
) -> None:
    index = PromptIndex([LONG, "boil an egg", "月亮为什么在地平线附近看起来更大?"], n=8)
    assert (index.find(text) is not None) is found


def test_a_phrase_that_many_prompts_share_is_no_overlap() -> None:
    frame = "write a short review of {} in one plain sentence for our page"
    index = PromptIndex([frame.format(thing) for thing in ("a dog", "a cat", "a cow")], n=5)
    assert index.find(frame.format("a horse")) is None
    found = index.find(frame.format("a cat"))
    assert found is not None
    assert found[0] == 1


def test_what_all_prompts_share_at_both_ends_is_their_frame() -> None:
    shown = [
        f"<s>system you are kind user what is {thing}? assistant" for thing in ("a cat", "a camel", "love")
    ]
    assert without_frame(shown) == ["a cat", "a camel", "love"]
    assert without_frame(["same", "same"]) == ["same", "same"]


# ---- similarity ----


def test_similarity_is_that_of_the_mean_states_that_predict_the_answers() -> None:
    model = tiny_llama(seed=3).eval()
    pair = {"row": 4, "prompt_ids": [1, 5, 6], "chosen_ids": [7, 8], "rejected_ids": [9, 10, 2]}
    [found] = pair_similarities(model, [pair], progress=False)
    states = []
    for name in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([[*pair["prompt_ids"], *pair[name]]])  # type: ignore[misc]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][0].double()
        states.append(sum(hidden[2 + k] for k in range(len(pair[name]))) / len(pair[name]))  # type: ignore[arg-type]
    expected = (states[0] @ states[1] - states[0] @ states[0]) / (states[0] @ states[0])
    assert found.row == 4
    assert found.ches == pytest.approx(expected.item(), rel=1e-6)
    assert ches(torch.zeros(2, 3), torch.ones(1, 3)) == 0


def test_what_others_say_within_an_answer_takes_no_part_in_similarity() -> None:
    model = tiny_llama(seed=3).eval()
    pair = {"row": 4, "prompt_ids": [1, 5, 6], "chosen_ids": [7, 8, 3], "rejected_ids": [9, 10, 2]}
    masks = {"chosen_mask": [1, 0, 1], "rejected_mask": None}
    [whole, masked] = pair_similarities(model, [pair, pair | masks], progress=False)
    states = []
    for name, places in (("chosen_ids", [2, 4]), ("rejected_ids", [2, 3, 4])):
        ids = torch.tensor([[*pair["prompt_ids"], *pair[name]]])  # type: ignore[misc]
        with torch.no_grad():
            states.append(model(ids, output_hidden_states=True).hidden_states[-1][0][places])
    assert masked.ches == pytest.approx(ches(*states), rel=1e-6)
    assert masked.ches != pytest.approx(whole.ches, rel=1e-3)


# ---- the command ----


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(seed=3).save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def conversation(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def config(folder: Path, model: str, rows: list[Any], **dataset: Any) -> Path:
    data = {"dataset_name": str(write(folder / "rows.jsonl", rows)), "subset": "train", "val_ratio": 0}
    path = folder / "config.yaml"
    settings = {
        "policy_name": model,
        "dataset": {**data, "quarantine_max_share": 0.5, "chat_template": True, **dataset},
    }
    path.write_text(json.dumps(settings))
    return path


ROWS = [
    *(conversation(f"w{n} w{n + 1} w{n + 2} w{n + 3} w{n + 4}", f"w{n}", f"w{n + 1} w2") for n in range(30)),
    conversation("w3 w4 w5 w6 w7", "w3", "w4 w2"),
    {"prompt": "", "chosen": "", "rejected": ""},
]


def test_the_command_says_what_stands_out_and_writes_page_numbers_and_the_rest(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write(
        tmp_path / "held-out.jsonl", [{"prompt": "w60 w10 w11 w12 w13 w14"}, {"prompt": "w70 w71"}]
    )
    arguments = ["--config", str(config(tmp_path, model, ROWS)), "--out", str(tmp_path / "out")]
    arguments += ["--evaluation", str(held_out), "--ngram", "4", "--similarity", "5"]
    arguments += ["--decontaminate", str(tmp_path / "rest.jsonl")]
    assert inspect_data.main(arguments) == 0
    printed = capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert numbers["findings"] == [line[2:] for line in printed.splitlines() if line.startswith("- ")]
    for sentence in (
        "1 of 32 rows give no pair (3.1 %)",
        "The rejected answer is the longer one in 100.0 % of the pairs",
        "1 pairs (3.2 %) say what an earlier pair says.",
        # "w10 w11 w12 w13" and "w11 … w14": in the rows that begin with w9, w10 and w11.
        "3 pairs have a run of words in common with 1 of 2 prompts",
    ):
        assert sentence in printed
    page = (tmp_path / "out" / "inspection.html").read_text()
    assert "20 pairs as the model sees them" in page
    assert "w91" in page  # The template's own words are visible.
    assert "&lt;/s&gt;" in page
    assert len(numbers["similarities"]) == 5
    assert numbers["similarities"] == sorted(numbers["similarities"], key=lambda pair: -pair["ches"])
    left = (tmp_path / "rest.jsonl").read_text().splitlines()
    # Rows that give no pair stay: they overlap with nothing.
    assert [json.loads(line) for line in left] == [row for n, row in enumerate(ROWS) if n not in (9, 10, 11)]
    assert f"rest.jsonl: {len(left)} rows, 3 left out" in printed


def test_prompts_shared_with_the_validation_are_found(tmp_path: Path, model: str) -> None:
    validation = write(tmp_path / "validation.jsonl", [conversation("w80 w12 w13 w14 w15 w16", "w1", "w2")])
    path = config(tmp_path, model, ROWS, eval_dataset_name=str(validation))
    assert inspect_data.main(["--config", str(path), "--out", str(tmp_path / "out"), "--ngram", "5"]) == 0
    numbers = json.loads((tmp_path / "out" / "inspection.json").read_text())
    assert numbers["leaked"] == [12]
    assert numbers["parts"]["validation"]["pairs"] == 1


def test_tokens_that_others_say_within_an_answer_are_counted_apart(tmp_path: Path, model: str) -> None:
    row = conversation("w5 w6", "w7 w8", "w9")
    row["chosen"] += [{"role": "user", "content": "w10 w11"}, {"role": "assistant", "content": "w12"}]
    counts = {}
    for setting in ("assistant", "all"):
        path = config(tmp_path, model, [row, row], answer_tokens=setting)
        out = tmp_path / setting
        assert inspect_data.main(["--config", str(path), "--out", str(out), "--similarity", "1"]) == 0
        counts[setting] = json.loads((out / "inspection.json").read_text())["report"]["train"]["masked"][
            "tokens"
        ]
        page = (out / "inspection.html").read_text()
        assert ("more of others, not scored" in page) == (setting == "assistant")
    assert counts["assistant"] > 0 == counts["all"]
    assert (
        f"{counts['assistant'] // 2} more of others"
        in (tmp_path / "assistant" / "inspection.html").read_text()
    )


def test_the_same_files_come_of_the_same_data(tmp_path: Path, model: str) -> None:
    for name in ("one", "two"):
        assert (
            inspect_data.main(["--config", str(config(tmp_path, model, ROWS)), "--out", str(tmp_path / name)])
            == 0
        )
    for file in ("inspection.html", "inspection.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--decontaminate", "rest.jsonl"], "--decontaminate needs --evaluation DATA"),
        (["--ngram", "0"], "--ngram must be at least 1, got 0"),
        (["--similarity", "-1"], "--similarity must be at least 0, got -1"),
        (["--refusals", "nowhere.txt"], "the patterns of refusals 'nowhere.txt' cannot be read"),
        (["dataset.dataset_name=null"], "dataset.dataset_name is required"),
        (["--evaluation", "./nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_said(
    tmp_path: Path, model: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--config", str(config(tmp_path, model, ROWS)), "--out", str(tmp_path / "out")]
    assert inspect_data.main([*start, *arguments]) == 2
    assert said in capsys.readouterr().err
