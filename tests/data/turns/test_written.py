"""The mask of answers with several turns, by templates of many kinds: which text is scored, and which is not."""

import json
import re
from pathlib import Path

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dynamic_dpo.data.pairing import MASK_FIELDS, Pair
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.prepare import prepare_preferences
from dynamic_dpo.data.readers import MessageReader
from dynamic_dpo.data.tokenize import tokenize_pairs
from dynamic_dpo.data.turns.mask import answer_mask
from dynamic_dpo.data.turns.places import TokenPlaces
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.utils.templates import LLAMA3_CHAT_TEMPLATE
from helpers_tokenizers import CHATML, STYLES, make_tokenizer

Q = {"role": "user", "content": "What is it?"}
THANKS = {"role": "user", "content": "It is great, a story"}
TOOL = {"role": "tool", "content": "12 345"}
HH = "\n\nHuman: Hi\n\nAssistant:"


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def pieces(row, side, tokenizer):
    """The answer as runs of what is scored and [what is not]."""
    ids, mask = row[f"{side}_ids"], row.get(f"{side}_mask") or [1] * len(row[f"{side}_ids"])
    assert len(ids) == len(mask)
    found, start = [], 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or mask[place] != mask[start]:
            text = tokenizer.decode(ids[start:place])
            found.append(text if mask[start] else [text])
            start = place
    return found


def tokenised(rows, tokenizer, *, chat_template=False, **options):
    pairs, quarantine = to_preference_pairs(rows, chat_template=chat_template)
    return tokenize_pairs(pairs, tokenizer, quarantine=quarantine, **options)


def answer_of(turns, template, style="qwen2", **options):
    tokenizer = make_tokenizer(style, eos="<|im_end|>", chat_template=template)
    row = {"prompt": [Q], "chosen": turns, "rejected": [says("No!")]}
    result = tokenised([row], tokenizer, **options)
    assert len(result.dataset) == 1, list(result.quarantine)
    assert "No!" in pieces(result.dataset[0], "rejected", tokenizer)[0]
    return pieces(result.dataset[0], "chosen", tokenizer)


TURNS = [says("It is blue."), THANKS, says("Paris")]
HEADER = "<|im_start|>assistant\n"
USER = f"<|im_start|>user\n{THANKS['content']}<|im_end|>\n"
EXPECTED = ["It is blue.<|im_end|>", [f"\n{USER}{HEADER}"], "Paris<|im_end|>"]


@pytest.mark.parametrize("style", [style for style in STYLES if "space" not in style])
def test_user_turn_within_an_answer_is_not_scored_and_the_end_of_each_turn_is(style):
    assert answer_of(TURNS, CHATML, style) == EXPECTED


def test_tool_and_system_turns_and_a_second_header_are_not_scored():
    turns = [says("a"), TOOL, {"role": "system", "content": "now"}, says("b"), says("c"), THANKS]
    assert answer_of(turns, CHATML) == [
        "a<|im_end|>",
        [f"\n<|im_start|>tool\n12 345<|im_end|>\n<|im_start|>system\nnow<|im_end|>\n{HEADER}"],
        "b<|im_end|>",
        ["\n" + HEADER],
        "c<|im_end|>",
    ]


def test_an_answer_of_one_turn_has_no_mask():
    tokenizer = make_tokenizer(eos="<|im_end|>", chat_template=CHATML)
    one = {"prompt": [Q], "chosen": [says("a")], "rejected": [says("b"), THANKS]}
    assert not set(MASK_FIELDS) & set(tokenised([one], tokenizer).dataset.column_names)
    both = tokenised([one, one | {"chosen": TURNS}], tokenizer).dataset
    assert both[0]["chosen_mask"] is both[0]["rejected_mask"] is both[1]["rejected_mask"] is None
    assert 0 in both[1]["chosen_mask"]


def test_generation_marks_of_a_template_are_taken_and_the_token_behind_them_that_ends_the_turn():
    marked = CHATML.replace(
        "message['content'] +", "'' }}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
        "{% endgeneration %}{% else %}{{ message.content }}{% endif %}{{",
    )  # fmt: skip
    # Written around the turn alone, so that only the marks tell where the second one begins.
    opened = marked.replace(
        "{% if add_generation_prompt %}", "{% if add_generation_prompt and messages|length == 1 %}"
    )
    for template in (marked, opened):
        assert answer_of(TURNS, template) == EXPECTED


def test_marks_that_enclose_something_else_are_not_believed():
    wrong = "{% generation %}{% endgeneration %}{% generation %}x{% endgeneration %}" + CHATML
    assert answer_of(TURNS, wrong) == EXPECTED


THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_turn_that_changes_once_others_follow_is_still_found():
    # The first turn by itself would have a thought: its end is found by a mark. The last one writes its own.
    assert answer_of(TURNS, THINKING) == [*EXPECTED[:2], "<think>\n\n</think>\nParis<|im_end|>"]
    # A generation prompt with the beginning of a thought, which the finished conversation has not.
    opened = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>' }}{% endif")
    assert answer_of(TURNS, opened) == EXPECTED


def test_a_row_whose_turns_cannot_be_told_apart_is_quarantined_by_name():
    # Every turn is written anew for each number of turns, and what it says is counted instead of shown.
    counted = (
        "(message['content'] if message.role == 'user' else message['content'] | length * messages | length)"
    )
    sized = CHATML.replace("message['content']", counted + " | string")
    tokenizer = make_tokenizer(eos="<|im_end|>", chat_template=sized)
    row, good = (
        {"prompt": [Q], "chosen": turns, "rejected": [says("b")]} for turns in (TURNS, [says("abc")])
    )
    result = tokenised([row, good], tokenizer)
    assert result.quarantine.counts() == {"turns_not_found": 1}
    assert len(result.dataset) == 1


PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_a_template_without_stop_tokens_scores_what_it_writes_of_a_turn():
    # As in its last turn, where eos is added; none is put into the middle of a text that has none.
    assert answer_of(TURNS, PLAIN) == [
        " It is blue.\n", [f"user: {THANKS['content']}\nassistant:"], " Paris\n<|im_end|>"
    ]  # fmt: skip


def test_a_template_without_generation_prompt_scores_no_header_within_an_answer():
    bare = PLAIN.replace("{% if add_generation_prompt %}assistant:{% endif %}", "")
    assert answer_of(TURNS, bare)[1:] == [[f"user: {THANKS['content']}\nassistant:"], " Paris\n<|im_end|>"]


def test_the_llama3_template():
    tokenizer = make_tokenizer("llama3", bos=True, chat_template=LLAMA3_CHAT_TEMPLATE)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
    )
    row = {"prompt": [Q], "chosen": [says("No!")], "rejected": [says(" It is blue. "), *TURNS[1:]]}
    (read,) = tokenised([row], tokenizer).dataset
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    foreign = header.format("user") + THANKS["content"] + "<|eot_id|>" + header.format("assistant")
    assert pieces(read, "rejected", tokenizer) == ["It is blue.<|eot_id|>", [foreign], "Paris<|eot_id|>"]


@pytest.mark.parametrize("style", ["qwen2", "metaspace"])
def test_a_template_whose_turns_follow_a_bracket_scores_the_blank_before_each_as_in_its_first(style):
    inst = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
        " {{ m.content }} </s>{% endif %}{% endfor %}"
    )
    answer = answer_of(TURNS, inst, style)
    foreign = answer[1][0].replace(" ", "")
    assert foreign == "[INST]Itisgreat,astory[/INST]"
    assert [piece.replace(" ", "") for piece in answer[::2]] == ["Itisblue.</s>", "Paris</s>"]
    assert [piece[0] for piece in answer[::2]] == [" ", " "]


def test_a_long_turn_behind_a_header_that_no_generation_prompt_gives():
    bare = PLAIN.replace("{% if add_generation_prompt %}assistant:{% endif %}", "")
    long = says("Once upon a time there was a small house.")
    foreign = [f"user: {THANKS['content']}\nassistant:"]
    assert answer_of([*TURNS[:2], long], bare)[1:] == [foreign, f" {long['content']}\n<|im_end|>"]
    direct = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    assert answer_of([*TURNS[:2], long], direct) == [
        "It is blue.<|im_end|>", [THANKS["content"] + "<|im_end|>"], long["content"] + "<|im_end|>"
    ]  # fmt: skip


@pytest.mark.parametrize("style", [style for style in STYLES if "space" not in style])
def test_tokenizers_that_are_asked_for_offsets_or_tell_no_places_give_the_same_mask(monkeypatch, style):
    monkeypatch.setattr(TokenPlaces, "_by_bytes", lambda *_: None)
    assert answer_of(TURNS, CHATML, style) == EXPECTED
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    assert answer_of(TURNS, CHATML, style) == EXPECTED


@pytest.mark.parametrize("bos", [False, True])
def test_human_turn_within_the_answer_of_a_transcript_is_not_scored(bos):
    tokenizer = make_tokenizer(bos=bos)
    text = HH + " No\n\nHuman: Why?\n\nAssistant: It is blue"
    rows = [
        {"chosen": HH + " Yes", "rejected": text},
        {"chosen": "<s>" + HH + " Yes", "rejected": "<s>" + text},
    ]
    for row in rows[: 1 + bos]:
        (read,) = tokenised([row | {"kind": "hh"}], tokenizer).dataset
        assert pieces(read, "rejected", tokenizer) == [
            " No", ["\n\nHuman: Why?\n\nAssistant:"], " It is blue</s>"
        ]  # fmt: skip
    chat = make_tokenizer(eos="<|im_end|>", chat_template=CHATML)
    (read,) = tokenised(rows[:1], chat, chat_template=True).dataset
    assert pieces(read, "rejected", chat) == [
        "No<|im_end|>", ["\n<|im_start|>user\nWhy?<|im_end|>\n" + HEADER], "It is blue<|im_end|>"
    ]  # fmt: skip


def test_truncation_within_a_foreign_turn_cuts_it_away():
    tokenizer = make_tokenizer(eos="<|im_end|>", chat_template=CHATML)
    row = {"prompt": [Q], "chosen": TURNS, "rejected": [says("It is blue."), Q, says("No")]}
    (whole,) = tokenised([row], tokenizer).dataset
    first = whole["chosen_mask"].index(0)
    for kept in (first + 1, first + 5):
        result = tokenised([row | {"rejected": [says("No")]}], tokenizer, max_completion_length=kept)
        assert len(result.dataset[0]["chosen_ids"]) == first
        assert (result.num_truncated, result.dataset.column_names) == (
            1,
            ["prompt_ids", "chosen_ids", "rejected_ids", "row"],
        )
        same = tokenised([row, row | {"rejected": [says("No")]}], tokenizer, max_completion_length=kept)
        assert same.quarantine.counts() == {"identical_after_truncation": 1}
    longer = tokenised([row], tokenizer, max_completion_length=whole["chosen_mask"].index(1, first) + 1)
    assert longer.dataset[0]["chosen_mask"] == whole["chosen_mask"][: len(longer.dataset[0]["chosen_ids"])]


def test_an_answer_left_without_a_token_of_the_assistant_is_quarantined():
    template = PLAIN.replace("{{ m.content }}\n", "{{ m.content }}")
    silent = {"prompt": [Q], "chosen": [says(""), *TURNS[1:]], "rejected": [says("No!")]}
    row = {"prompt": [Q], "chosen": [says("Yes")], "rejected": [says("No!")]}
    tokenizer = make_tokenizer(chat_template=template.replace("assistant:{% endif", "assistant: {% endif"))
    result = tokenised([silent, row], tokenizer, max_completion_length=2)
    assert result.quarantine.counts() == {"nothing_scored": 1}


def test_all_counts_everything_behind_the_prompt():
    tokenizer = make_tokenizer(eos="<|im_end|>", chat_template=CHATML)
    row = {"prompt": [Q], "chosen": [*TURNS, THANKS], "rejected": [says("b")]}
    result = tokenised([row], tokenizer, answer_tokens="all")
    assert result.num_dropped_turns == 0
    (read,) = result.dataset
    assert pieces(read, "chosen", tokenizer) == [
        f"It is blue.<|im_end|>\n{USER}{HEADER}Paris<|im_end|>\n{USER}"
    ]
    with pytest.raises(ConfigError, match="answer_tokens must be one of assistant, all, got 'some'"):
        tokenised([row], tokenizer, answer_tokens="some")


def test_masked_pairs_and_tokens_stand_in_the_report(tmp_path, caplog):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"q {i}"}],
            "chosen": [says("a")] if i % 2 else TURNS,
            "rejected": TURNS[:1],
        }
        for i in range(12)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = make_tokenizer(eos="<|im_end|>", chat_template=CHATML)
    with caplog.at_level("INFO", "dynamic_dpo"):
        train, _, report = prepare_preferences(str(file), tokenizer, val_ratio=0)
    masks = [mask for mask in train["chosen_mask"] if mask is not None]
    zeros = sum(mask.count(0) for mask in masks)
    assert (
        report["train"]["masked"] == {"pairs": len(masks), "tokens": zeros} == {"pairs": 6, "tokens": zeros}
    )
    assert report["settings"]["answer_tokens"] == "assistant"
    assert f"in 6 pairs others speak within an answer; {zeros} tokens" in caplog.text


TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TEXTS = ["It is blue.", "a story", "Paris", "good day", "once"]
CONTROL = re.compile(
    r"<\|[^|>\s]+\|>|</?s>|</?think>|<(?:end|start)_of_turn>|<turn\|>|<\|turn>|\[gMASK\]|<\uff5c[^\uff5c]+\uff5c>"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|end|>", "<|eot|>",
        "<turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>")  # fmt: skip


def published(name):
    """The tokenizer of a published template: its control words are tokens."""
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    tokenizer = make_tokenizer("qwen2")
    control = sorted({*CONTROL.findall(text)})
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.eos_token = next((end for end in ENDS if end in control), "</s>")
    tokenizer.bos_token, tokenizer.chat_template = "<s>", text
    return tokenizer


@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("*.jinja")))
def test_turns_are_found_in_the_published_templates_that_trl_brings(name):
    tokenizer = published(name)
    turns = [says(text) if i % 2 == 0 else {"role": "user", "content": text} for i, text in enumerate(TEXTS)]
    result = tokenised(
        [{"prompt": [Q], "chosen": turns, "rejected": [says("No!")]}], tokenizer, max_length=9999
    )
    if len(result.quarantine):
        # Contents in parts, or a thought in the prompt alone that this tokenizer spells in more than eight tokens.
        assert {*result.quarantine.counts()} <= {"template_error", "template_not_prefix"}
        assert name.startswith(("llava", "qwen3_5_nothink", "qwen3_6", "qwen3_5_think"))
        return
    found = pieces(result.dataset[0], "chosen", tokenizer)
    if "idefics" in name or "smolvlm" in name:  # These show no content in text.
        assert len(found) == 5
        return
    assert len(found) == 5, found
    for place, (piece, text) in enumerate(zip(found, TEXTS, strict=True)):
        assert isinstance(piece, list) == bool(place % 2)
        piece = piece[0] if isinstance(piece, list) else piece
        assert text in piece
        assert not any(other in piece for other in TEXTS if other != text)
        if place % 2 == 0:
            # Nothing of a header, but thoughts, channels and ends; GLM's end is the next user's tag.
            piece = piece.removesuffix("<|user|>").removesuffix("<|user|></s>")
            assert not re.search(r"user\b(?!<\|message)|assistant|Assistant|model\n|CHATBOT", piece), piece


contents = st.text("ab 1\n\t.é天🙂<|>", max_size=8) | st.sampled_from(
    ["<|im_end|>", "</s> a", "\u200b", " ", "a\r\nb"]
)
turns_of_anybody = st.lists(
    st.tuples(st.sampled_from(["assistant", "assistant", "user", "tool", "system"]), contents), max_size=6
)


@settings(deadline=None, max_examples=150)
@given(first=contents, turns=turns_of_anybody, style=st.sampled_from(["gpt2", "llama3", "qwen2"]))
def test_of_any_conversation_the_assistants_turns_are_scored_and_nothing_else(first, turns, style):
    tokenizer = make_tokenizer(style, eos="<|im_end|>", chat_template=CHATML)
    answer = [says(first), *({"role": role, "content": text} for role, text in turns)]
    rejected = [says("No!")]
    reader = MessageReader(tokenizer)
    (read,) = reader.encode([Pair([Q], answer, rejected)])
    whole, _ = reader.finish(read.texts)
    mask = answer_mask(read.foreign[0], num_prompt=len(whole.prompt), num_answer=len(whole.chosen))
    mask = mask or [1] * len(whole.chosen)
    assert mask[-1] == 1
    runs = [[]]
    for token, counts in zip(whole.chosen, mask, strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    said = [message["content"] for message in answer if message["role"] == "assistant"]
    scored = [tokenizer.decode(run) for run in runs]
    # A line break that became one token with the header's belongs to what the assistant writes.
    assert [text.strip() for text in scored] == [(text + "<|im_end|>").strip() for text in said]
    assert [text.lstrip("\n") for text in scored] == [(text + "<|im_end|>").lstrip("\n") for text in said]


def test_tool_calls_are_the_assistants_and_what_the_tool_answers_is_not():
    calling = CHATML.replace(
        "message['content'] + '<|im_end|>\n' }}",
        "(message['content'] or '') }}{% for call in message.tool_calls or [] %}{{ call.function.name + '(1)' }}"
        "{% endfor %}{{ '<|im_end|>\n' }}",
    )
    call = says(None, tool_calls=[{"type": "function", "function": {"name": "look", "arguments": {}}}])
    assert answer_of([call, TOOL, says("b")], calling) == [
        "look(1)<|im_end|>",
        [f"\n<|im_start|>tool\n12 345<|im_end|>\n{HEADER}"],
        "b<|im_end|>",
    ]


def test_rows_of_token_ids_bring_their_masks():
    ids = {"prompt_ids": [7, 8], "chosen_ids": [9, 10, 11, 12], "rejected_ids": [13]}
    masked = ids | {"chosen_mask": [1, 0, 0, 1], "rejected_mask": None}
    result = tokenised([ids, masked], make_tokenizer())
    assert [row["chosen_mask"] for row in result.dataset] == [None, [1, 0, 0, 1]]
    assert len(result.quarantine) == 0
    cut = tokenised([masked], make_tokenizer(), max_completion_length=3).dataset
    assert cut[0]["chosen_ids"] == [9]
    for rows, setting in (
        ([ids], "assistant"),
        ([masked], "all"),
        ([ids | {"chosen_mask": [1] * 4}], "assistant"),
    ):
        assert not set(MASK_FIELDS) & {
            *tokenised(rows, make_tokenizer(), answer_tokens=setting).dataset.column_names
        }
    for bad in ([1], [0] * 4, [1, 2, 1, 1], "1001"):
        bad_row = ids | {"chosen_mask": bad}
        assert tokenised([ids, bad_row], make_tokenizer()).quarantine.counts() == {"bad_token_ids": 1}
