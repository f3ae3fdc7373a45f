"""An answer ends with the assistant's last turn; text that cannot be seen says nothing."""

import json

import pytest
from datasets import Dataset

from dynamic_dpo.data.hh_dataset import apply_chat_template_to_dataset
from dynamic_dpo.data.pairing import detect_kind, read_pair
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.prepare import prepare_preferences
from dynamic_dpo.data.quarantine import BadRow
from dynamic_dpo.data.sft.rows import read_example
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.data.tokenize import tokenize_pairs
from helpers_tokenizers import CHATML, make_tokenizer

Q = {"role": "user", "content": "q"}
THANKS = {"role": "user", "content": "thanks"}
HH_PROMPT = "\n\nHuman: Hi\n\nAssistant:"


def says(text):
    return {"role": "assistant", "content": text}


def chat_tokenizer():
    return make_tokenizer(eos="<|im_end|>", chat_template=CHATML)


def answers_of(rows, tokenizer, **options):
    pairs, quarantine = to_preference_pairs(rows, **options)
    result = tokenize_pairs(pairs, tokenizer, quarantine=quarantine)
    decoded = [
        tuple(tokenizer.decode(row[name]) for name in ("chosen_ids", "rejected_ids"))
        for row in result.dataset
    ]
    return decoded, result


def reason_of(row, **options):
    with pytest.raises(BadRow) as bad:
        read_pair(row, detect_kind(row), **options)
    return bad.value.reason


def test_case_of_a_last_turn_that_is_not_the_assistants(shared_folder):
    rows = load_rows(str(shared_folder / "cases" / "last-turn-not-assistant" / "pairs.jsonl"))
    answers, result = answers_of(rows, chat_tokenizer())
    assert answers == [("a<|im_end|>", "b<|im_end|>")]
    assert result.num_dropped_turns == 2


@pytest.mark.parametrize("last", ["user", "system", "tool"])
def test_turns_of_anybody_behind_the_answer_are_dropped_and_counted(last):
    behind = [{"role": last, "content": "x"}, THANKS]
    row = {"prompt": [Q], "chosen": [says("a"), *behind], "rejected": [says("b")]}
    answers, result = answers_of([row, row], chat_tokenizer())
    assert answers == [("a<|im_end|>", "b<|im_end|>")] * 2
    assert (result.num_dropped_turns, len(result.quarantine)) == (4, 0)


def test_answers_that_differ_only_behind_their_end_are_identical():
    row = {"prompt": [Q], "chosen": [says("a"), THANKS], "rejected": [says("a"), Q]}
    good = {"prompt": [Q], "chosen": [says("a")], "rejected": [says("b")]}
    _, result = answers_of([row, good], chat_tokenizer())
    assert result.quarantine.counts() == {"identical_answers": 1}


@pytest.mark.parametrize(
    "behind", ["\n\nHuman: thanks", "\n\nHuman: thanks\n\nAssistant:", "\n\nHuman: r\n\nHuman: s"]
)
def test_human_turns_behind_an_answer_of_a_transcript_are_dropped(behind):
    # The chosen transcript's last tag ends the prompt, so only the rejected one may have a tag behind it.
    rows = [{"chosen": HH_PROMPT + " Yes", "rejected": HH_PROMPT + " No" + behind}]
    answers, result = answers_of(rows, make_tokenizer())
    assert answers == [(" Yes</s>", " No</s>")]
    assert result.num_dropped_turns == 1
    answers, result = answers_of(rows, chat_tokenizer(), chat_template=True)
    assert answers == [("Yes<|im_end|>", "No<|im_end|>")]
    assert result.num_dropped_turns == behind.count("Human")


def test_text_that_only_looks_like_a_transcript_is_left_as_it_is():
    row = {"prompt": "Write a dialogue.", "chosen": " A\n\nHuman: b", "rejected": " B"}
    answers, result = answers_of([row], make_tokenizer())
    assert answers == [(" A\n\nHuman: b</s>", " B</s>")]
    assert result.num_dropped_turns == 0


def test_dropped_turns_stand_in_the_report_of_the_data(tmp_path, caplog):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"q {i}"}],
            "chosen": [says("a"), THANKS],
            "rejected": [says("b")],
        }
        for i in range(12)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO", "dynamic_dpo"):
        report = prepare_preferences(str(file), chat_tokenizer(), val_ratio=0.25, report_dir=tmp_path).report
    parts = [report["train"], report["validation"]]
    assert [part["dropped_turns"] for part in parts] == [part["pairs"] for part in parts]
    assert json.loads((tmp_path / "data_report.json").read_text())["train"] == report["train"]
    assert f"train: {report['train']['pairs']} turns behind the last answer" in caplog.text


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff \u00ad", "\u202e\u202c"])
def test_invisible_text_is_blank_in_every_shape(blank):
    assert reason_of({"prompt": "Q:", "chosen": blank, "rejected": " no"}) == "empty_chosen"
    assert reason_of({"prompt": "Q:", "chosen": " no", "rejected": blank}) == "empty_rejected"
    assert reason_of({"prompt": blank, "chosen": " a", "rejected": " b"}) == "empty_prompt"
    assert reason_of({"chosen": blank, "rejected": " b"}) == "empty_chosen"
    row = {"prompt": [Q], "chosen": [says("a")], "rejected": [says(blank)]}
    assert reason_of(row) == "empty_rejected"
    assert (
        reason_of(row | {"prompt": [{"role": "user", "content": blank}], "rejected": "b"}) == "empty_prompt"
    )
    assert reason_of({"chosen": HH_PROMPT + blank, "rejected": HH_PROMPT + " a"}) == "empty_chosen"
    for example in ({"prompt": "Q:", "completion": blank}, {"messages": [Q, says(blank)]}):
        with pytest.raises(BadRow, match="empty_chosen"):
            read_example(example, as_messages="messages" in example)


def test_answer_of_others_words_alone_is_empty():
    row = {"prompt": [Q], "chosen": [says(" "), THANKS], "rejected": [says("b")]}
    assert reason_of(row) == "empty_chosen"
    hh = {"chosen": HH_PROMPT + " a", "rejected": HH_PROMPT + " \n\nHuman: thanks"}
    assert reason_of(hh) == "empty_rejected"
    assert reason_of(hh, as_messages=True) == "empty_rejected"


def test_supervised_answer_of_a_transcript_ends_before_the_human_turn_behind_it():
    row = {"chosen": HH_PROMPT + " Yes\n\nHuman: thanks"}
    assert read_example(row, as_messages=False).completion == " Yes"
    assert read_example(row, as_messages=True).completion == [says("Yes")]


@pytest.mark.parametrize("shape", ["transcript", "prompt and completion"])
def test_supervised_answer_of_a_transcript_is_its_last_turn(shape):
    text = " No\n\nHuman: Why?\n\nAssistant: It is blue\n\nHuman: thanks"
    row = (
        {"chosen": HH_PROMPT + text}
        if shape == "transcript"
        else {"prompt": HH_PROMPT + " ", "completion": text}
    )
    example = read_example(row, as_messages=False)
    assert example.completion == " It is blue"
    assert example.prompt.endswith(" No\n\nHuman: Why?\n\nAssistant:")
    example = read_example(row, as_messages=True)
    assert [message["content"] for message in example.prompt + example.completion] == [
        "Hi",
        "No",
        "Why?",
        "It is blue",
    ]


def test_sampled_ids_of_an_answer_are_kept_without_the_turn_behind_it():
    tokenizer = chat_tokenizer()
    ids = {
        name: tokenizer(text)["input_ids"]
        for name, text in (("chosen_ids", "It is"), ("rejected_ids", "blue"))
    }
    row = {"prompt_messages": [Q], "chosen": [says("It is"), THANKS], "rejected": [says("blue")], **ids}
    (answers,), result = answers_of([row], tokenizer)
    assert answers == ("It is<|im_end|>", "blue<|im_end|>")
    assert result.num_dropped_turns == 1
    pairs, _ = to_preference_pairs([row])
    (everything,) = tokenize_pairs(pairs, tokenizer, answer_tokens="all").dataset
    assert "thanks" in tokenizer.decode(everything["chosen_ids"])


def test_rendered_text_has_no_turn_behind_the_answer():
    dataset = Dataset.from_list([{"prompt": [Q], "chosen": [says("a"), THANKS], "rejected": [says("b")]}])
    rendered = apply_chat_template_to_dataset(dataset, chat_tokenizer())[0]
    assert (rendered["chosen"], rendered["rejected"]) == ("a<|im_end|>", "b<|im_end|>")


def test_rendered_text_in_which_others_speak_is_warned_of(caplog):
    rows = [{"prompt": [Q], "chosen": [says("a"), THANKS, says("c")], "rejected": [says("b"), THANKS]}]
    apply_chat_template_to_dataset(Dataset.from_list(rows * 2), chat_tokenizer())
    assert "in 2 of 2 pairs others speak within an answer: as text all of it is scored" in caplog.text
    caplog.clear()
    apply_chat_template_to_dataset(
        Dataset.from_list([rows[0] | {"chosen": [says("a"), THANKS]}]), chat_tokenizer()
    )
    assert "others speak" not in caplog.text
