"""Pairs to ids: agreement with TRL, one BOS, one stop token, the boundary, and what cannot be used."""

import time
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from bounds_of_time import NO_END
from dynamic_dpo.data import arrow
from dynamic_dpo.data.preference import to_preference_pairs
from dynamic_dpo.data.quarantine import Quarantine
from dynamic_dpo.data.tokenize import tokenize_pairs
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.utils.templates import LLAMA3_CHAT_TEMPLATE
from helpers_tokenizers import CHATML, STYLES, make_tokenizer

TEXT_ROWS = [
    {"prompt": "\n\nHuman: What is it?\n\nAssistant:", "chosen": " It is blue.", "rejected": " No!"},
    {"prompt": "The sky is", "chosen": " blue", "rejected": " green and 12"},
    {"prompt": "The sk", "chosen": "y is blue", "rejected": "y it is green"},
    {"prompt": "It ends", "chosen": " here.</s>", "rejected": " there.\n"},
    {"prompt": "天空", "chosen": "是蓝色", "rejected": "é"},
]
CONVERSATION = {
    "prompt": [{"role": "user", "content": "What is it?"}],
    "chosen": [{"role": "assistant", "content": "It is blue."}],
    "rejected": [{"role": "assistant", "content": "No!"}],
}


def tokenized(rows, tokenizer, **options):
    return tokenize_pairs(Dataset.from_list(rows), tokenizer, **options)


def by_trl(rows, tokenizer, max_length=None):
    """The installed TRL's own preparation, without a model."""
    tokenizer.pad_token = tokenizer.eos_token
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    args = DPOConfig(use_cpu=True, bf16=False, max_length=max_length)
    dataset = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in dataset]


def ids_of(dataset):
    return [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in dataset]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bos", [False, True])
def test_text_ids_equal_trl(style, bos):
    ours = tokenized(TEXT_ROWS, make_tokenizer(style, bos=bos))
    assert ids_of(ours.dataset) == by_trl(TEXT_ROWS, make_tokenizer(style, bos=bos))


def test_real_hh_ids_equal_trl(shared_folder):
    from dynamic_dpo.data.sources import load_rows

    file = str(shared_folder / "data" / "hh-harmless" / "validation.jsonl.gz")
    pairs, _ = to_preference_pairs(load_rows(file, subset="train[:40]"))
    ours = tokenize_pairs(pairs, make_tokenizer(bos=True), max_length=10_000)
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in pairs]
    assert len(ours.quarantine) == 0
    assert ids_of(ours.dataset) == by_trl(rows, make_tokenizer(bos=True))


def test_conversation_ids_equal_trl_up_to_the_blank_behind_the_stop_token():
    tokenizer = make_tokenizer(eos="<|im_end|>", chat_template=CHATML)
    ours = ids_of(tokenized([CONVERSATION], tokenizer).dataset)[0]
    theirs = by_trl([CONVERSATION], make_tokenizer(eos="<|im_end|>", chat_template=CHATML))[0]
    newline = tokenizer("\n")["input_ids"]
    assert ours["prompt_ids"] == theirs["prompt_ids"]
    assert ours["chosen_ids"] + newline == theirs["chosen_ids"]
    assert ours["rejected_ids"] + newline == theirs["rejected_ids"]
    assert tokenizer.decode(ours["chosen_ids"]) == "It is blue.<|im_end|>"


def says(text):
    return {"role": "assistant", "content": text}


USER = {"role": "user", "content": "It is great, a story"}
SHAPES_OF_TRL = {
    "one turn": CONVERSATION,
    "several turns": CONVERSATION | {"chosen": [says("It is"), USER, says("Paris")]},
    "a turn behind the answer": CONVERSATION
    | {"chosen": [says("It is"), USER], "rejected": [says("No"), USER]},
    "without prompt": {
        "chosen": [USER, says("It is"), USER, says("blue")],
        "rejected": [USER, says("It is"), USER, says("green"), USER],
    },
}


@pytest.mark.parametrize("shape", SHAPES_OF_TRL)
@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])
def test_all_conversation_ids_equal_trl_where_all_tokens_count(shape, eos):
    rows = [SHAPES_OF_TRL[shape]] * 2
    pairs, quarantine = to_preference_pairs(rows)
    tokenizer = make_tokenizer(eos=eos, chat_template=CHATML)
    result = tokenize_pairs(pairs, tokenizer, answer_tokens="all", quarantine=quarantine)
    assert ids_of(result.dataset) == by_trl(rows, make_tokenizer(eos=eos, chat_template=CHATML))
    assert set(result.dataset.column_names) == {"prompt_ids", "chosen_ids", "rejected_ids", "row"}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("bos", [False, True])
def test_all_text_ids_equal_trl_where_all_tokens_count(style, bos):
    hh = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " a\n\nHuman: b", "rejected": " no<|im_end|>"}
    rows = [*TEXT_ROWS, hh, hh | {"chosen": " a\n\nHuman: b\n\nAssistant: c"}]
    ours = tokenized(rows, make_tokenizer(style, bos=bos), answer_tokens="all")
    assert ids_of(ours.dataset) == by_trl(rows, make_tokenizer(style, bos=bos))
    implicit = [{"chosen": "The sky is blue.", "rejected": "The sky is green."}]
    pairs, _ = to_preference_pairs(implicit)
    ours = tokenize_pairs(pairs, make_tokenizer(style, bos=bos), answer_tokens="all")
    assert ids_of(ours.dataset) == by_trl(implicit, make_tokenizer(style, bos=bos))


def test_dropped_rows_are_those_that_trl_drops():
    tokenizer = make_tokenizer()
    length = max(len(tokenizer(row["prompt"])["input_ids"]) for row in TEXT_ROWS)
    ours = tokenized(TEXT_ROWS, tokenizer, max_length=length)
    assert ours.quarantine.counts() == {"prompt_fills_max_length": 1}
    assert [row["prompt_ids"] for row in ours.dataset] == [
        row["prompt_ids"] for row in by_trl(TEXT_ROWS, make_tokenizer(), max_length=length)
    ]


@pytest.mark.parametrize("style", ["gpt2", "llama3", "metaspace"])
def test_text_begins_with_one_bos_even_where_it_spells_one(style):
    tokenizer = make_tokenizer(style, bos=True)
    spelled = [row | {"prompt": "<s>" + row["prompt"]} for row in TEXT_ROWS[:2]]
    for row in tokenized(TEXT_ROWS[:2] + spelled, tokenizer).dataset:
        assert row["prompt_ids"].index(1) == 0
        assert (row["prompt_ids"] + row["chosen_ids"]).count(1) == 1


def test_eos_is_added_once_and_not_behind_another_stop_token():
    rows = [
        {"prompt": "a b", "chosen": " yes", "rejected": " yes</s>!"},
        {"prompt": "a b", "chosen": " yes</s>", "rejected": " no<|im_end|>"},
    ]
    dataset = tokenized(rows, make_tokenizer()).dataset
    assert [ids[-2:].count(2) for ids in dataset["chosen_ids"]] == [1, 1]
    assert dataset[0]["rejected_ids"][-1] == 2
    assert dataset[1]["rejected_ids"][-1] == 4


def test_tokenizer_that_adds_eos_itself_gets_no_second_and_no_false_shift():
    plain = tokenized(TEXT_ROWS[:2], make_tokenizer(bos=True))
    closing = tokenized(TEXT_ROWS[:2], make_tokenizer(bos=True, adds_eos=True))
    assert ids_of(closing.dataset) == ids_of(plain.dataset)
    assert closing.num_boundary_shifts == 0


def test_tokens_that_merge_across_the_boundary_are_counted_and_belong_to_the_answers():
    tokenizer = make_tokenizer()
    result = tokenized([TEXT_ROWS[2]], tokenizer)
    row = result.dataset[0]
    assert result.num_boundary_shifts == 1
    assert tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) == "The sky is blue</s>"
    assert tokenizer("The sk")["input_ids"] != row["prompt_ids"]


def test_prompt_without_a_token_of_its_own_is_quarantined_unless_there_is_bos():
    row = {"prompt": "i", "chosen": "t is", "rejected": "t it"}
    assert "it" in make_tokenizer().get_vocab()
    with_bos = tokenized([row, TEXT_ROWS[0]], make_tokenizer(bos=True))
    assert with_bos.dataset[0]["prompt_ids"] == [1]
    without = tokenized([row, TEXT_ROWS[0]], make_tokenizer())
    assert without.quarantine.counts() == {"empty_prompt": 1}


@pytest.mark.parametrize("style", ["gpt2", "llama3", "qwen2", "metaspace"])
def test_conversation_ends_in_one_stop_token_and_starts_with_one_bos(style):
    tokenizer = make_tokenizer(style, bos=True, eos="<|im_end|>", chat_template="{{ bos_token }}" + CHATML)
    row = tokenized([CONVERSATION], tokenizer).dataset[0]
    assert (row["prompt_ids"] + row["chosen_ids"]).count(1) == 1
    assert [ids[-1] for ids in (row["chosen_ids"], row["rejected_ids"])] == [4, 4]
    # A metaspace tokenizer shows its own blanks behind special tokens.
    assert tokenizer.decode(row["prompt_ids"]).replace(" ", "").endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(row["rejected_ids"]).strip() == "No!<|im_end|>"


def test_stop_token_of_the_template_suffices_without_eos():
    tokenizer = make_tokenizer(eos=None, chat_template=CHATML)
    assert tokenized([CONVERSATION], tokenizer).dataset[0]["chosen_ids"][-1] == 4


def test_eos_is_added_where_the_template_leaves_the_last_turn_open():
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant:{% endif %}"
    row = tokenized([CONVERSATION], make_tokenizer(chat_template=template)).dataset[0]
    assert make_tokenizer().decode(row["chosen_ids"]) == " It is blue.\n</s>"


def test_llama3_template_renders_answers_behind_the_prompt():
    tokenizer = make_tokenizer("llama3", bos=True, chat_template=LLAMA3_CHAT_TEMPLATE)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
    )
    result = tokenized([CONVERSATION], tokenizer)
    assert result.num_boundary_shifts == 0
    assert tokenizer.decode(result.dataset[0]["chosen_ids"]) == "It is blue.<|eot_id|>"


def test_few_tokens_that_only_the_generation_prompt_has_are_a_counted_shift():
    template = CHATML.replace("assistant\n' }}{% endif", "assistant\n<s>' }}{% endif")
    result = tokenized([CONVERSATION], make_tokenizer(chat_template=template))
    assert result.num_boundary_shifts == 1
    assert result.dataset[0]["prompt_ids"][-1] != 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}" + CHATML,
        CHATML.replace("message['content']", "message['content'] if messages | length == 1 else '-'"),
        "{% if messages[-1].role == 'user' %}" + CHATML + "{% else %}{{ messages[-1].content }}{% endif %}",
        CHATML.replace("for message in messages", "for message in messages if message.role == 'user'"),
    ],
    ids=["other beginning", "rewritten prompt", "prompt left out", "answer left out"],
)
def test_template_that_does_not_continue_the_prompt_quarantines_the_row(template):
    long = CONVERSATION | {"prompt": [{"role": "user", "content": "What is it? " * 5}]}
    result = tokenized([long], make_tokenizer(chat_template=template))
    assert result.quarantine.counts() == {"template_not_prefix": 1}
    assert len(result.dataset) == 0


def test_conversation_that_the_template_refuses_costs_only_itself():
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHATML
    refused = CONVERSATION | {"prompt": [{"role": "system", "content": "Be kind"}]}
    result = tokenized([CONVERSATION, refused, CONVERSATION], make_tokenizer(chat_template=template))
    assert len(result.dataset) == 2
    assert [entry[:2] for entry in result.quarantine] == [(1, "template_error")]
    assert "user first" in next(iter(result.quarantine)).excerpt


def test_conversations_without_template_are_an_error_that_says_what_to_set():
    with pytest.raises(DataError, match=r"tokenizer\.chat_template.*dataset\.chat_template=false"):
        tokenized([CONVERSATION], make_tokenizer())


def test_nothing_that_ends_an_answer_is_an_error():
    with pytest.raises(DataError, match=r"set tokenizer\.eos_token"):
        tokenized(TEXT_ROWS, make_tokenizer(eos=None))
    open_ended = "{% for m in messages %}{{ m.content }} {% endfor %}"
    with pytest.raises(DataError, match=r"set tokenizer\.eos_token"):
        tokenized([CONVERSATION], make_tokenizer(eos=None, chat_template=open_ended))


def test_limits_are_applied_and_truncated_pairs_counted():
    whole = tokenized(TEXT_ROWS[:2], make_tokenizer()).dataset
    lengths = [len(row["prompt_ids"]) for row in whole]
    result = tokenized(
        TEXT_ROWS[:2],
        make_tokenizer(),
        max_length=lengths[1] + 3,
        max_prompt_length=lengths[1],
        max_completion_length=2,
    )
    assert result.num_truncated == 2
    assert result.dataset[0]["prompt_ids"] == whole[0]["prompt_ids"][-lengths[1] :]
    assert result.dataset["chosen_ids"][:] == [ids[:2] for ids in whole["chosen_ids"]]


def test_keep_end_keeps_answers_that_keep_start_cuts():
    row = {"prompt": "word " * 40, "chosen": " yes it is blue", "rejected": " no"}
    start, end = (
        tokenized(
            [row],
            make_tokenizer(),
            max_length=len(make_tokenizer()(row["prompt"])["input_ids"]) + 2,
            truncation_mode=mode,
        )
        for mode in ("keep_start", "keep_end")
    )
    assert len(start.dataset[0]["chosen_ids"]) == 2
    assert end.dataset[0]["chosen_ids"][-1] == 2
    assert len(end.dataset[0]["prompt_ids"]) < len(start.dataset[0]["prompt_ids"])


def test_impossible_limits_are_errors_before_any_work():
    with pytest.raises(ConfigError, match="max_length"):
        tokenized(TEXT_ROWS, make_tokenizer(), max_length=0)


def test_given_ids_are_only_truncated():
    rows = [
        {"prompt_ids": [7, 8, 9], "chosen_ids": [5, 6], "rejected_ids": [6]},
        {"prompt_ids": [], "chosen_ids": [5], "rejected_ids": [6]},
        {"prompt_ids": [7], "chosen_ids": [], "rejected_ids": [6]},
    ]
    result = tokenized(rows, make_tokenizer(), max_length=4)
    assert result.dataset[:] == {
        "prompt_ids": [[7, 8, 9]],
        "chosen_ids": [[5]],
        "rejected_ids": [[6]],
        "row": [0],
    }
    assert result.quarantine.counts() == {"empty_prompt": 1, "empty_chosen": 1}


def test_columns_are_int32_and_rows_keep_their_numbers():
    quarantine = Quarantine()
    pairs, _ = to_preference_pairs([{"prompt": "x"}, *TEXT_ROWS], kind="text", quarantine=quarantine)
    result = tokenize_pairs(pairs, make_tokenizer(), quarantine=quarantine)
    assert str(result.dataset.features["chosen_ids"]) == "List(Value('int32'))"
    assert result.dataset["row"][:] == [1, 2, 3, 4, 5]
    assert result.quarantine is quarantine
    assert quarantine.counts() == {"missing_field": 1}


@pytest.mark.parametrize("template", [None, CHATML])
def test_worker_processes_give_the_same_ids(monkeypatch, template):
    monkeypatch.setattr(arrow, "_MIN_ROWS_PER_PROCESS", 1)
    rows = (TEXT_ROWS if template is None else [CONVERSATION]) * 8
    tokenizer = make_tokenizer(chat_template=template)
    assert tokenized(rows, tokenizer, num_proc=2).dataset[:] == tokenized(rows, tokenizer).dataset[:]


def test_swapped_pairs_give_swapped_ids():
    swapped = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in TEXT_ROWS]
    for ours, theirs in zip(
        tokenized(TEXT_ROWS, make_tokenizer()).dataset,
        tokenized(swapped, make_tokenizer()).dataset,
        strict=True,
    ):
        assert (ours["chosen_ids"], ours["rejected_ids"]) == (theirs["rejected_ids"], theirs["chosen_ids"])


def test_empty_dataset_gives_an_empty_result():
    empty = Dataset.from_list(TEXT_ROWS).select([])
    assert len(tokenize_pairs(empty, make_tokenizer()).dataset) == 0


@pytest.mark.parametrize("turn", ["word " * 20_000, "x" * 100_000, "\n" * 100_000, "é天 " * 34_000])
def test_turns_of_100000_characters_take_no_more_than_seconds(turn):
    rows = [{"prompt": f"\n\nHuman: {turn}\n\nAssistant:", "chosen": f" {turn}yes", "rejected": " no"}]
    start = time.process_time()
    result = tokenized(rows, make_tokenizer(), max_length=64, max_prompt_length=32)
    assert time.process_time() - start < NO_END
    assert [len(result.dataset[0][name]) for name in ("prompt_ids", "chosen_ids")] == [32, 32]


# ---- answers with the ids that were sampled ----


def sampled_row(tokenizer, chosen_ids, rejected_ids, **answers):
    texts = {"chosen": tokenizer.decode(chosen_ids), "rejected": tokenizer.decode(rejected_ids)}
    return {
        "prompt_messages": CONVERSATION["prompt"],
        **texts,
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids,
        **answers,
    }


def split_into_characters(tokenizer, text):
    """A way of spelling a text that its tokenizer would not take."""
    return [
        token for character in text for token in tokenizer(character, add_special_tokens=False)["input_ids"]
    ]


@pytest.mark.parametrize("stop", [[], ["<|im_end|>"]], ids=["without the stop token", "with it"])
def test_sampled_ids_are_trained_on_as_they_were_sampled(stop):
    tokenizer = make_tokenizer("llama3", chat_template=CHATML)
    end = tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    chosen, rejected = (split_into_characters(tokenizer, text) for text in ("The capital", "It is blue"))
    assert tokenizer("The capital")["input_ids"] != chosen
    row = sampled_row(tokenizer, chosen, rejected)
    row["chosen_ids"] = chosen + tokenizer.convert_tokens_to_ids(stop)
    pairs, _ = to_preference_pairs([row])
    (ids,) = ids_of(tokenize_pairs(pairs, tokenizer).dataset)
    assert ids["chosen_ids"] == chosen + end
    assert ids["rejected_ids"] == rejected + end
    by_text, _ = to_preference_pairs([row], kind="rollouts")
    (plain,) = ids_of(tokenize_pairs(by_text, tokenizer).dataset)
    assert ids["prompt_ids"] == plain["prompt_ids"]
    assert ids["chosen_ids"] != plain["chosen_ids"]


def test_sampled_ids_of_another_tokenizer_give_way_to_the_text_with_a_warning(caplog):
    tokenizer = make_tokenizer("llama3", chat_template=CHATML)
    for foreign in ([7, 8, 9], [100_000]):
        row = sampled_row(tokenizer, [41, 42], [43]) | {"chosen": "The capital", "chosen_ids": foreign}
        pairs, _ = to_preference_pairs([row])
        caplog.clear()
        (ids,) = ids_of(tokenize_pairs(pairs, tokenizer).dataset)
        assert tokenizer.decode(ids["chosen_ids"]) == "The capital<|im_end|>"
        assert "do not spell their answer" in caplog.text


def test_a_sampled_answer_whose_ids_are_missing_is_tokenised_from_its_text():
    tokenizer = make_tokenizer("llama3", chat_template=CHATML)
    row = sampled_row(tokenizer, split_into_characters(tokenizer, "The sky"), [43]) | {"chosen_ids": None}
    pairs, _ = to_preference_pairs([row], kind="sampled")
    (ids,) = ids_of(tokenize_pairs(pairs, tokenizer).dataset)
    assert tokenizer.decode(ids["chosen_ids"]) == "The sky<|im_end|>"
