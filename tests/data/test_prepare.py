"""The whole way: from a file's name to ids, files and one summary."""

import json
import logging

import pytest

from dynamic_dpo.data.conversations import prepare_sft
from dynamic_dpo.data.prepare import prepare_preferences
from dynamic_dpo.errors import ConfigError, DataError
from helpers_tokenizers import CHATML, make_tokenizer


def hh(i, *, answer="yes"):
    prompt = f"\n\nHuman: question {i}?\n\nAssistant:"
    return {"chosen": f"{prompt} {answer}", "rejected": f"{prompt} no"}


def rollout(i):
    return {
        "prompt_messages": [{"role": "user", "content": f"q{i}"}],
        "chosen": "yes",
        "rejected": "no",
        "metadata": {},
    }


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def hh_file(tmp_path):
    rows = [hh(i % 50) for i in range(98)]
    return write(tmp_path / "rows.jsonl", [*rows, {"chosen": 5}, hh(1, answer="")])


def prompts(dataset, tokenizer):
    return {tokenizer.decode(ids) for ids in dataset["prompt_ids"]}


def test_every_row_is_trained_on_validated_on_or_quarantined(hh_file, tmp_path):
    tokenizer = make_tokenizer()
    train, validation, report = prepare_preferences(hh_file, tokenizer, report_dir=tmp_path / "run")
    lines = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert sorted([*train["row"], *validation["row"], *(r["row"] for r in records)]) == list(range(100))
    assert [(r["row"], r["reason"]) for r in records] == [(98, "not_text"), (99, "empty_chosen")]
    assert not prompts(train, tokenizer) & prompts(validation, tokenizer)
    assert json.loads((tmp_path / "run" / "data_report.json").read_text()) == report


def test_report_says_what_was_done(hh_file):
    report = prepare_preferences(hh_file, make_tokenizer(), max_length=40, seed=3).report
    assert (report["kind"], report["form"]) == ("hh", "text")
    assert report["sources"] == [
        {
            "name": f"{hh_file} [train]",
            "rows": 100,
            "quarantined": 2,
            "reasons": {"not_text": 1, "empty_chosen": 1},
        }
    ]
    assert report["train"]["pairs"] + report["validation"]["pairs"] == 98
    assert report["train"]["tokens"]["rejected_ids"]["max"] == 2  # " no" and eos
    assert report["settings"] == {
        "chat_template": False,
        "val_ratio": 0.1,
        "seed": 3,
        "max_length": 40,
        "max_prompt_length": None,
        "max_completion_length": None,
        "truncation_mode": "keep_start",
        "answer_tokens": "assistant",
    }


def test_summary_is_logged(hh_file, caplog):
    with caplog.at_level(logging.INFO, "dynamic_dpo"):
        prepare_preferences(hh_file, make_tokenizer())
    assert "2 of 100 rows" in caplog.text
    assert "hh rows as text" in caplog.text
    assert "validation: " in caplog.text


def test_same_arguments_give_the_same_rows(hh_file):
    first, second = (prepare_preferences(hh_file, make_tokenizer()) for _ in range(2))
    assert first.train[:] == second.train[:]
    assert first.report == second.report


def test_every_setting_has_an_effect(hh_file):
    def ids(**options):
        prepared = prepare_preferences(hh_file, make_tokenizer(chat_template=CHATML), **options)
        return prepared.train[:], prepared.validation and prepared.validation[:]

    plain = ids()
    tight = max(map(len, plain[0]["prompt_ids"])) + 1
    for options in (
        {"subset": "train[:50%]"},
        {"chat_template": True},
        {"val_ratio": 0.3},
        {"val_ratio": 0},
        {"seed": 1},
        {"max_length": tight},
        {"max_prompt_length": 4},
        {"max_completion_length": 1},
    ):
        assert ids(**options) != plain, options
    assert ids(max_length=tight, truncation_mode="keep_end") != ids(max_length=tight)


def test_too_many_bad_rows_are_an_error_after_their_list_is_written(hh_file, tmp_path):
    with pytest.raises(DataError, match=r"not_text 1, empty_chosen 1.*run.quarantine\.jsonl"):
        prepare_preferences(hh_file, make_tokenizer(), quarantine_max_share=0.01, report_dir=tmp_path / "run")
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "run" / "data_report.json").exists()


def test_rows_of_which_none_is_usable_are_listed_too(tmp_path):
    file = write(tmp_path / "rows.jsonl", [hh(1, answer="")] * 3)
    with pytest.raises(DataError, match=r"empty_chosen 3.*quarantine\.jsonl"):
        prepare_preferences(file, make_tokenizer(), report_dir=tmp_path)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 3


def test_no_pair_left_after_truncation_is_an_error(hh_file):
    with pytest.raises(DataError, match="prompt_fills_max_length"):
        prepare_preferences(hh_file, make_tokenizer(), max_length=4)


def test_rollouts_are_rendered_by_the_template(tmp_path):
    file = write(tmp_path / "rows.jsonl", map(rollout, range(20)))
    tokenizer = make_tokenizer(chat_template=CHATML)
    train, _, report = prepare_preferences(file, tokenizer, generated_data=True)
    assert (report["kind"], report["form"]) == ("rollouts", "messages")
    assert tokenizer.decode(train[0]["chosen_ids"]) == "yes<|im_end|>"


def test_rollouts_with_sampled_ids_are_known_by_most_of_their_rows(tmp_path):
    tokenizer = make_tokenizer(chat_template=CHATML)
    ids = {"chosen_ids": tokenizer("yes")["input_ids"], "rejected_ids": tokenizer("no")["input_ids"]}
    rows = [rollout(i) | (ids if i % 3 else {}) for i in range(21)]
    file = write(tmp_path / "rows.jsonl", rows)
    train, _, report = prepare_preferences(file, tokenizer, generated_data=True)
    assert (report["kind"], report["form"]) == ("sampled", "messages")
    assert {tokenizer.decode(row["chosen_ids"]) for row in train} == {"yes<|im_end|>"}


def test_generated_data_takes_no_other_rows(hh_file):
    with pytest.raises(DataError, match="missing_field"):
        prepare_preferences(hh_file, make_tokenizer(chat_template=CHATML), generated_data=True)


def test_separate_validation_set_is_used_whole_and_shared_prompts_are_named(hh_file, tmp_path, caplog):
    other = write(tmp_path / "other.jsonl", [hh(0), hh(1), *(hh(i) for i in range(100, 118)), "no object"])
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        train, validation, report = prepare_preferences(
            hh_file, make_tokenizer(), eval_dataset_name=other, report_dir=tmp_path
        )
    assert (len(train), len(validation)) == (98, 20)
    assert report["prompts_shared_with_validation"] == 2
    assert "2 prompts are in both" in caplog.text
    assert [source["quarantined"] for source in report["sources"]] == [2, 1]


def test_unusable_validation_rows_are_held_to_the_same_share(hh_file, tmp_path):
    other = write(tmp_path / "other.jsonl", [hh(100), "no object"])
    with pytest.raises(DataError, match=r"1 of 2 rows of .*other\.jsonl"):
        prepare_preferences(hh_file, make_tokenizer(), eval_dataset_name=other)


def test_set_of_one_prompt_is_trained_on_with_a_warning(tmp_path, caplog):
    file = write(tmp_path / "rows.jsonl", [hh(1)] * 4)
    with caplog.at_level(logging.WARNING, "dynamic_dpo"):
        train, validation, _ = prepare_preferences(file, make_tokenizer())
    assert (len(train), validation) == (4, None)
    assert "no pair is left to validate on" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_ratio": 1.0}, "val_ratio"),
        ({"max_length": 1}, "max_length"),
        ({"quarantine_max_share": 2}, "share"),
    ],
)
def test_settings_out_of_range_are_errors(hh_file, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare_preferences(hh_file, make_tokenizer(), **options)


def test_real_rows_are_prepared_with_few_in_quarantine(shared_folder):
    folder = str(shared_folder / "data" / "hh-harmless")
    prepared = prepare_preferences(folder, make_tokenizer(), max_length=4096)
    assert prepared.report["sources"][0]["rows"] == 1500
    assert prepared.report["sources"][0]["reasons"] == {"empty_chosen": 4, "no_common_prompt": 1}
    assert len(prepared.train) + len(prepared.validation) == 1495


@pytest.mark.parametrize("template", [None, CHATML])
def test_sft_examples_follow_the_tokenizer(hh_file, template):
    train, validation, report = prepare_sft(hh_file, make_tokenizer(chat_template=template))
    assert train.column_names == ["prompt", "completion"]
    assert len(train) + len(validation) == 98
    expected = " yes" if template is None else [{"role": "assistant", "content": "yes"}]
    assert train[0]["completion"] == expected
    assert report["form"] == ("text" if template is None else "messages")
    assert {str(p) for p in train["prompt"]}.isdisjoint(str(p) for p in validation["prompt"])


def test_sft_takes_a_separate_validation_set_and_writes_its_books(hh_file, tmp_path):
    other = write(tmp_path / "other.jsonl", [hh(100)])
    train, validation, report = prepare_sft(
        hh_file, make_tokenizer(), eval_dataset_name=other, report_dir=tmp_path / "run"
    )
    assert (len(train), len(validation)) == (98, 1)
    assert json.loads((tmp_path / "run" / "data_report.json").read_text()) == report
    assert len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) == 2


def test_sft_stops_above_the_accepted_share(hh_file):
    with pytest.raises(DataError, match="2 of 100 rows"):
        prepare_sft(hh_file, make_tokenizer(), quarantine_max_share=0)
