"""Fuzzed rows of 40 kinds through every reader: none crashes, and each is kept or quarantined, never lost."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.data.hh_dataset import apply_chat_template_to_dataset
from dynamic_dpo.data.pairing import ROW_KINDS, TOKEN_FIELDS
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.quarantine import REASONS, Quarantine, excerpt
from dynamic_dpo.data.sft_dataset import to_sft_examples
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.data.tldr_dataset import load_tldr_dataset
from dynamic_dpo.data.tokenize import tokenize_pairs
from dynamic_dpo.errors import DataError
from helpers_tokenizers import CHATML, make_tokenizer

ODD_TEXTS = [
    "", " ", "\n", "\t\r\n", "\0", "a\0b", "\u202eabc", "\ufeffabc", "a\u2028b\u2029c", "\x85", "\x1c\x1d\x1e",
    "👩‍👩‍👧‍👦", "e\u0301" * 50, "\u0300" * 200, "ﷺ", "𝕳𝖎", "\uffff", "\U0010ffff", "<|im_end|>",
    "<|im_start|>assistant\n",    "</s>", "<s><s>",
    "{{ messages }}", "{% raw %}", "{% for %}", "\\", "\\u0000", "'", '"', "%s %d {} {0}",
    "-" * 3000,
    "\n\nHuman:", "\n\nAssistant:", "\n\nHuman: \n\nAssistant: ", "\r\n\r\nHuman: a\r\n\r\nAssistant: b", "nan",
    "null",    "\n\nAssistant:\n\nAssistant:\n\nAssistant:", "Human: a\n\nAssistant: b", "[]", "{}", "0",
    "日本語の文章です。", "مرحبا",
]  # fmt: skip
SURROGATES = ["\ud800", "a\udfffb", "\udc80\ud83d", "\ud83d"]
SCALARS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    2**31,
    2**63,
    2**64,
    -(2**65),
    float("nan"),
    float("inf"),
]

Row = Any
Draw = random.Random


def text(draw: Draw) -> str:
    if draw.random() < 0.35:
        return draw.choice(ODD_TEXTS)
    return " ".join(
        draw.choice(["the", "a", "capital", "12", "\n", "yes", "é"]) for _ in range(draw.randint(1, 9))
    )


def anything(draw: Draw, depth: int = 0) -> Any:
    kind = draw.randrange(7 if depth < 3 else 4)
    if kind < 2:
        return text(draw)
    if kind < 4:
        return draw.choice(SCALARS)
    if kind == 4:
        return [anything(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    fields = ["chosen", "rejected", "prompt", "role", "content", "type", "text", "", "messages", "x.y"]
    return {draw.choice(fields): anything(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def transcript(draw: Draw) -> str:
    turns = "".join(
        f"\n\n{draw.choice(['Human', 'Assistant'])}: {text(draw)}" for _ in range(draw.randint(0, 4))
    )
    return f"\n\nHuman: {text(draw)}{turns}\n\nAssistant: {text(draw)}"


def message(draw: Draw) -> Any:
    role = draw.choice(["user", "assistant", "system", "tool", "", None, "USER"])
    content: Any = text(draw) if draw.random() < 0.7 else anything(draw)
    return {"role": role, "content": content} if draw.random() < 0.9 else anything(draw)


def messages(draw: Draw) -> list[Any]:
    return [message(draw) for _ in range(draw.randint(0, 4))]


def turns(draw: Draw, *roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text(draw) or "x"} for role in roles]


def tokens(draw: Draw) -> Any:
    odd = [[], None, [-1], [2**31], [1.5], [True], ["1"], "123", [[1]], [None], [2**70], [1] * 3000]
    return (
        draw.choice(odd) if draw.random() < 0.3 else [draw.randrange(400) for _ in range(draw.randint(1, 30))]
    )


def three(make: Callable[[Draw], Any]) -> Callable[[Draw], Row]:
    return lambda draw: {"prompt": make(draw), "chosen": make(draw), "rejected": make(draw)}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# A maker gives an object, to be written as JSON, or the bytes of the line itself.
MAKERS: dict[str, Callable[[Draw], Row]] = {
    "hh": lambda d: {"chosen": transcript(d), "rejected": transcript(d)},
    "hh that shares its prompt": lambda d: {
        side: f"\n\nHuman: Where?\n\nAssistant: {text(d)}" for side in ("chosen", "rejected")
    },
    "hh with windows line ends": lambda d: {
        side: transcript(d).replace("\n", "\r\n") for side in ("chosen", "rejected")
    },
    "hh with one field missing": lambda d: {d.choice(["chosen", "rejected"]): transcript(d)},
    "hh with a scalar": lambda d: {"chosen": transcript(d), "rejected": d.choice(SCALARS)},
    "hh with equal answers": lambda d: dict.fromkeys(("chosen", "rejected"), transcript(d)),
    "text": three(text),
    "text without prompt": lambda d: {"chosen": "It is " + text(d), "rejected": "It is " + text(d)},
    "text beside a null prompt": lambda d: {"prompt": None, "chosen": text(d), "rejected": text(d)},
    "text with half surrogates": three(lambda d: d.choice(SURROGATES) + text(d)),
    "long text": three(lambda d: text(d) * d.randint(100, 400)),
    "messages": three(messages),
    "good messages": lambda d: {
        "prompt": turns(d, "user"), "chosen": turns(d, "assistant"), "rejected": turns(d, "assistant")
    },
    "whole conversations": lambda d: {
        side: [{"role": "user", "content": "Hi"}, *turns(d, "assistant")] for side in ("chosen", "rejected")
    },
    "messages with parts": three(
        lambda d: [{"role": "user", "content": [{"type": d.choice(["text", "image"]), "text": anything(d)}]}]
    ),
    "messages with half surrogates": three(
        lambda d: [{"role": d.choice(SURROGATES), "content": d.choice(SURROGATES)}]
    ),
    "text prompt beside messages": lambda d: {"prompt": text(d), "chosen": messages(d), "rejected": messages(d)},
    "message prompt beside text": lambda d: {"prompt": messages(d), "chosen": text(d), "rejected": text(d)},
    "rollouts": lambda d: {"prompt_messages": messages(d), "chosen": text(d), "rejected": text(d), "metadata": {}},
    "rollouts with sampled ids": lambda d: {
        "prompt_messages": messages(d), "chosen": text(d), "rejected": text(d),
        "chosen_ids": tokens(d), "rejected_ids": tokens(d),
    },
    "rollouts of anything": lambda d: {
        "prompt_messages": anything(d), "chosen": anything(d), "rejected": anything(d)
    },
    "rollouts that repeat the prompt": lambda d: {
        "prompt_messages": [{"role": "user", "content": "q"}],
        **{s: [{"role": "user", "content": "q"}, *messages(d)] for s in ("chosen", "rejected")},
    },
    "token ids": lambda d: {name: tokens(d) for name in ("prompt_ids", "chosen_ids", "rejected_ids")},
    "token ids and text": lambda d: {"prompt_ids": tokens(d), "chosen": text(d), "rejected": text(d)},
    "conversations for fine-tuning": lambda d: {"messages": messages(d)},
    "messages of anything": lambda d: {"messages": anything(d)},
    "prompt and completion": lambda d: {"prompt": text(d), "completion": text(d)},
    "completion of anything": lambda d: {"prompt": anything(d), "completion": anything(d)},
    "posts": lambda d: {"post": text(d), "summary": text(d), "id": d.choice([text(d), 1, None])},
    "posts of anything": lambda d: {"post": anything(d), "summary": anything(d), "info": anything(d)},
    "anything in the usual fields": three(anything),
    "an object of anything": lambda d: {text(d): anything(d) for _ in range(3)},
    "not an object": lambda d: d.choice([anything(d), *SCALARS, [], "text"]),
    "an empty object": lambda d: {},
    "not json": lambda d: d.choice([b"{", b"}", b"[1,", b"nul", b"{'a': 1}", b"\\", b'"', b"{\"a\": 01}", b"<html>"]),
    "cut off": lambda d: json.dumps({"chosen": transcript(d), "rejected": "x"}).encode()[: d.randint(1, 40)],
    "not utf-8": lambda d: b'{"chosen": "\xff\xfe' + bytes([d.randrange(128, 256)]) + b'", "rejected": "b"}',
    "control bytes": lambda d: b'{"chosen": "a\x00\x01b", "rejected": "\x1b[2J"}',
    "deep nesting": lambda d: (
        '{"chosen": ' + nested(d.choice([50, 400, 900, 5000])) + ', "rejected": "b"}'
    ).encode(),
    "huge numbers": lambda d: b'{"chosen": ' + b"9" * d.choice([30, 4000, 6000]) + b', "rejected": 1e999}',
    "duplicate fields": lambda d: b'{"chosen": "a b", "chosen": "a c", "rejected": "a d", "prompt": "a"}',
}  # fmt: skip


@cache
def fuzzed(count: int, seed: int = 0) -> tuple[bytes, ...]:
    """``count`` lines, the kinds in turn, in shuffled order, no line blank."""
    draw = random.Random(seed)
    makers = list(MAKERS.values())
    lines = []
    for number in range(count):
        row = makers[number % len(makers)](draw)
        lines.append(row.replace(b"\n", b" ") if isinstance(row, bytes) else json.dumps(row).encode())
    draw.shuffle(lines)
    return tuple(lines)


# 1,500 in every run of the tests, 10,000 in the slow ones.
COUNTS = [1500, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.fixture(params=COUNTS, scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in fuzzed(request.param)))
    dataset = load_rows(str(path))
    assert len(dataset) == request.param
    return dataset


def check_accounts(kept: list[int], quarantine: Quarantine, total: int, path: Path) -> None:
    """Every row stands in exactly one place, under a known reason, and the list of the bad ones can be written."""
    bad = [entry.row for entry in quarantine]
    assert Counter(kept) + Counter(bad) == Counter(range(total))
    assert set(quarantine.counts()) <= set(REASONS)
    lines = quarantine.write(path).read_bytes().decode().split("\n")
    assert [json.loads(line)["row"] for line in lines[:-1]] == sorted(bad)


def test_there_are_more_than_twenty_five_kinds() -> None:
    assert len(MAKERS) == 41


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_every_fuzzed_row_is_kept_as_a_tokenised_pair_or_quarantined(
    kind: str, chat_template: bool, rows: Any, tmp_path: Path
) -> None:
    if chat_template and kind not in ("hh", "text"):
        pytest.skip("a template changes nothing for messages and ids")
    pairs, quarantine = to_preference_pairs(rows, kind=kind, chat_template=chat_template)
    tokenizer = make_tokenizer("llama3", bos=True, chat_template=CHATML)
    tokenized = tokenize_pairs(pairs, tokenizer, max_length=64, quarantine=quarantine)
    check_accounts(tokenized.dataset["row"], quarantine, len(rows), tmp_path / "quarantine.jsonl")
    assert len(tokenized.dataset) > 0
    for pair in tokenized.dataset:
        assert all(pair[name] for name in TOKEN_FIELDS)
        assert pair["chosen_ids"] != pair["rejected_ids"]
        assert len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) <= 64
        for side in ("chosen", "rejected"):
            if (mask := pair.get(f"{side}_mask")) is not None:
                assert len(mask) == len(pair[f"{side}_ids"])
                assert mask[-1] == 1 > min(mask)


@pytest.mark.parametrize("layout", ["messages", "prompt_completion", "text"])
def test_every_fuzzed_row_is_kept_for_fine_tuning_or_quarantined(
    layout: str, rows: Any, tmp_path: Path
) -> None:
    examples, quarantine = to_sft_examples(rows, layout=layout)
    check_accounts(examples["row"], quarantine, len(rows), tmp_path / "quarantine.jsonl")


def test_every_fuzzed_post_is_kept_or_counted(
    rows: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "posts.jsonl"
    path.write_bytes(b"\n".join(fuzzed(len(rows))))
    posts = load_tldr_dataset(str(path), post_field="post", summary_field="summary")
    assert len(set(posts["id"])) == len(posts) > 0
    said = caplog.messages[-1]
    assert f"{len(rows) - len(posts)} of {len(rows)} rows" in said
    named = load_tldr_dataset(str(path), post_field="post", summary_field="summary", id_field="id")
    assert f"{len(rows) - len(named)} of {len(rows)} rows" in caplog.messages[-1]


def test_a_template_refuses_fuzzed_pairs_one_by_one(rows: Any) -> None:
    pairs, _ = to_preference_pairs(rows, kind="messages")
    refusing = make_tokenizer(
        chat_template="{% if messages[0]['role'] != 'user' %}{{ 1 / 0 }}{% endif %}" + CHATML
    )
    kept = [p for p in pairs if p["prompt"][0]["role"] == "user"]
    rendered = apply_chat_template_to_dataset(pairs.remove_columns("row"), refusing)
    assert 0 < len(rendered) <= len(kept)


@pytest.mark.parametrize("name", list(MAKERS))
def test_a_set_of_one_kind_of_row_alone_is_read_or_refused_with_reasons(name: str) -> None:
    draw = random.Random(name)
    lines = [MAKERS[name](draw) for _ in range(12)]
    objects = [line if not isinstance(line, bytes) else line.decode("latin-1") for line in lines]
    for read in (to_preference_pairs, lambda rows: to_sft_examples(rows, layout="messages")):
        try:
            kept, quarantine = read(objects)
        except DataError:  # None of the rows can be used, which is said as an error of that type.
            continue
        assert len(kept) + len(quarantine) == 12


def test_an_excerpt_shows_what_python_cannot_print() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert excerpt({"a": 10**5000}) == "a dict that cannot be shown"
    assert excerpt(deep) == "a list that cannot be shown"
    while deep:  # Not left to the recursion of the interpreter's own clean-up.
        deep = deep[0]
