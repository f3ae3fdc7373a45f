"""The generation stage: the same text whatever the batch, nothing written twice, nothing stale reused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.eval.generate.batched import Generation
from dynamic_dpo.eval.generate.engines import TransformersEngine
from dynamic_dpo.eval.generate.ready import REFERENCE, ModelOutputs
from dynamic_dpo.eval.generate.sampling import row_key, sample_tokens
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.generate.stage import (
    identify_model,
    read_outputs,
    write_outputs,
)
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.prompts.render import model_prompt, prompt_key, render_prompt
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.models.adapters import find_model, open_model
from dynamic_dpo.utils.json_lines import JsonLinesFile, read_json_lines
from tiny import tiny_gpt2, tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w91 {% endif %}"
)
PROMPTS = [
    PromptRecord.of([{"role": "user", "content": " ".join(f"w{n + k}" for k in range(1 + n % 5))}])
    for n in range(11)
]
GREEDY = GenerationSettings(max_new_tokens=6, temperature=0, device="cpu")
SAMPLED = GenerationSettings(max_new_tokens=6, temperature=0.9, num_samples=2, seed=3, device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return folder


def outputs_of(
    folder: Path,
    path: Path,
    settings: GenerationSettings,
    prompts: list[PromptRecord] | None = None,
    **spec: Any,
) -> ModelOutputs:
    prompts = PROMPTS if prompts is None else prompts
    one = ModelSpec("one", str(folder), **spec)
    written = write_outputs(prompts, one, settings, path)
    return read_outputs(path, prompts, one, written.fingerprint, settings.num_samples)


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batch_size_and_order_change_no_text(model: Path, tmp_path: Path, how: GenerationSettings) -> None:
    shuffled = random.Random(1).sample(PROMPTS, len(PROMPTS))
    alone = outputs_of(model, tmp_path / "1", GenerationSettings(**{**vars(how), "batch_size": 1}))
    together = outputs_of(model, tmp_path / "16", how)
    mixed = outputs_of(model, tmp_path / "s", GenerationSettings(**{**vars(how), "batch_size": 5}), shuffled)
    assert alone == together
    assert len(alone.outputs) == len(PROMPTS) * how.num_samples

    def by_place(found: ModelOutputs) -> dict[tuple[str, int], Any]:
        return {(output.id, output.sample): output for output in found.outputs}

    assert by_place(mixed) == by_place(alone)
    assert len({output.text for output in alone.outputs}) > 5


def test_a_run_cut_short_writes_only_what_is_missing_and_gives_the_same_outputs(
    model: Path, tmp_path: Path
) -> None:
    whole = outputs_of(model, tmp_path / "whole", SAMPLED)
    path = tmp_path / "cut"
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    # Seven whole lines and half of the eighth: as a process leaves them that is killed in the middle of a write.
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    asked: list[int] = []

    class Watched(TransformersEngine):
        def write(self, prompts: Any) -> list[Generation]:
            asked.append(len(prompts))
            return super().write(prompts)

    spec = ModelSpec("one", str(model))
    written = write_outputs(PROMPTS, spec, SAMPLED, path, opener=Watched)
    # The fourth prompt's second sample was lost; with the seven prompts never begun that makes eight.
    assert sum(asked) == 8
    assert read_outputs(path, PROMPTS, spec, written.fingerprint, 2) == whole
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_prompt_ids_output_ids_and_stop_token_are_the_sequence_that_was_sampled(
    model: Path, tmp_path: Path
) -> None:
    prompts = PROMPTS[:4]
    how = GenerationSettings(max_new_tokens=40, temperature=0.9, num_samples=4, seed=3, device="cpu")
    found = outputs_of(model, tmp_path / "out", how, prompts)
    policy, tokenizer = open_model(find_model(str(model)), device="cpu", dtype="float32")
    rows = {(row["id"], row["sample"]): row for row in read_json_lines(tmp_path / "out")}
    by_id = {prompt.id: prompt for prompt in prompts}
    ends = set()
    for output in found.outputs:
        row = rows[output.id, output.sample]
        key = row_key(3, prompt_key(by_id[output.id].messages), output.sample)
        read = render_prompt(tokenizer, by_id[output.id].messages)
        stop = [] if row["stop_token_id"] is None else [row["stop_token_id"]]
        sampled = [*row["token_ids"], *stop]
        # Sampled once more, all at once: each position's token from the scores after those before it.
        logits = policy(torch.tensor([[*read, *sampled]])).logits[0, len(read) - 1 : -1]
        for step, token in enumerate(sampled):
            again = sample_tokens(
                logits[step : step + 1], torch.tensor([key]), step, temperature=0.9, top_p=0.95
            )
            assert again.item() == token
        assert (output.finish_reason, len(row["token_ids"]) < 40) == (
            ("stop", True) if stop else ("length", False)
        )
        ends.add(output.finish_reason)
    assert ends == {"stop", "length"}


def test_a_complete_file_loads_no_model(model: Path, tmp_path: Path) -> None:
    def opener(*_: Any) -> Any:
        raise AssertionError("the model was loaded")

    first = outputs_of(model, tmp_path / "out", GREEDY)
    again = ModelSpec("another name", str(model))
    written = write_outputs(PROMPTS, again, GREEDY, tmp_path / "out", opener=opener)
    found = read_outputs(tmp_path / "out", PROMPTS, again, written.fingerprint, 1)
    assert [output.text for output in found.outputs] == [output.text for output in first.outputs]
    assert {output.model for output in found.outputs} == {"another name"}


CHANGES: dict[str, dict[str, Any]] = {
    "max_new_tokens": {"max_new_tokens": 5},
    "min_new_tokens": {"min_new_tokens": 1},
    "temperature": {"temperature": 0.8},
    "top_p": {"top_p": 0.5},
    "seed": {"seed": 4},
    "do_sample": {"do_sample": False},
    "precision": {"precision": "bfloat16"},
    "engine": {"engine": "vllm"},
    "max_model_len": {"engine": "vllm", "max_model_len": 64},
    "quantization": {"engine": "vllm", "quantization": "fp8"},
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_makes_another_fingerprint(model: Path, key: str) -> None:
    spec = ModelSpec("one", str(model))
    changed = GenerationSettings(**{**vars(SAMPLED), **CHANGES[key]})
    before = GenerationSettings(**{**vars(SAMPLED), "engine": "vllm"}) if len(CHANGES[key]) > 1 else SAMPLED
    assert identify_model(spec, changed).fingerprint != identify_model(spec, before).fingerprint


def test_what_changes_no_text_changes_no_fingerprint(model: Path) -> None:
    spec = ModelSpec("one", str(model))
    same = GenerationSettings(**{**vars(SAMPLED), "batch_size": 3, "num_samples": 9})
    assert identify_model(spec, same) == identify_model(spec, SAMPLED)
    assert identify_model(ModelSpec("two", str(model)), SAMPLED) == identify_model(spec, SAMPLED)


def test_prompt_template_and_the_models_own_files_are_in_the_fingerprint(model: Path, tmp_path: Path) -> None:
    prints = {identify_model(ModelSpec("m", str(model)), GREEDY).fingerprint}
    prints.add(identify_model(ModelSpec("m", str(model), prompt_template="w1 {prompt}"), GREEDY).fingerprint)
    prints.add(identify_model(ModelSpec("m", str(model), prompt_format="text"), GREEDY).fingerprint)
    for name, seed, template in (("weights", 1, TEMPLATE), ("template", 0, TEMPLATE + "w8 ")):
        tiny_llama(seed=seed).save_pretrained(tmp_path / name)
        word_tokenizer(template=template).save_pretrained(tmp_path / name)
        prints.add(identify_model(ModelSpec("m", str(tmp_path / name)), GREEDY).fingerprint)
    assert len(prints) == 5


def test_outputs_of_other_settings_stay_in_the_file_and_out_of_the_result(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    first = outputs_of(model, path, SAMPLED)
    outputs_of(model, path, GREEDY)
    assert outputs_of(model, path, SAMPLED) == first
    assert len(path.read_text().splitlines()) == 3 * len(PROMPTS)


def test_more_samples_are_added_to_those_there_are(model: Path, tmp_path: Path) -> None:
    two = outputs_of(model, tmp_path / "out", SAMPLED)
    four = outputs_of(model, tmp_path / "out", GenerationSettings(**{**vars(SAMPLED), "num_samples": 4}))
    assert [output for output in four.outputs if output.sample < 2] == two.outputs
    assert len((tmp_path / "out").read_text().splitlines()) == 4 * len(PROMPTS)


def test_a_prompt_without_room_is_left_out_with_its_reason_and_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_gpt2().save_pretrained(tmp_path / "gpt2")  # holds 128 tokens
    word_tokenizer(template=TEMPLATE).save_pretrained(tmp_path / "gpt2")
    long = PromptRecord.of([{"role": "user", "content": "w1 " * 122}])
    prompts = [*PROMPTS[:2], long]
    found = outputs_of(tmp_path / "gpt2", tmp_path / "out", GREEDY, prompts)
    assert found.left_out == {long.id: "123 tokens leave no room for 6 of the 128 there are"}
    assert [output.id for output in found.outputs] == [prompt.id for prompt in PROMPTS[:2]]
    assert "cannot be asked 1 of 3 prompts" in caplog.text
    before = (tmp_path / "out").read_bytes()
    assert outputs_of(tmp_path / "gpt2", tmp_path / "out", GREEDY, prompts) == found
    assert (tmp_path / "out").read_bytes() == before


def test_a_prompt_that_the_template_refuses_is_left_out(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "strict")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    word_tokenizer(template=refuses + TEMPLATE).save_pretrained(tmp_path / "strict")
    system = PromptRecord.of([{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}])
    found = outputs_of(tmp_path / "strict", tmp_path / "out", GREEDY, [PROMPTS[0], system])
    assert found.left_out == {system.id: "the chat template refuses it: no system turn"}
    assert len(found.outputs) == 1


def test_every_output_that_begins_with_a_role_header_is_flagged(model: Path, tmp_path: Path) -> None:
    texts = ["assistant\n\nHello", "Assistant: Hello", "### Assistant\nHello", " user\nHello", "System: Hello",
             "Fine.", "", "Fine.<|im_end|>", "so so so so so so so so so so so so", "Fine, but cut"]  # fmt: skip

    class Fake:
        tokenizer = word_tokenizer(template=TEMPLATE)
        max_length = None
        prompts_at_once = 4

        def __init__(self, *_: Any) -> None:
            self.texts = iter(texts)

        def write(self, prompts: Any) -> list[Generation]:
            return [
                Generation(p, 0, next(self.texts), (1, 2), not p[-1]["content"].startswith("w8 "), 1)
                for p in prompts
            ]

        def close(self) -> None:
            pass

    prompts = [PromptRecord.of([{"role": "user", "content": f"w{n} " * (20 - n)}]) for n in range(9)]
    prompts.append(PromptRecord.of([{"role": "user", "content": "w8 w8"}]))
    spec = ModelSpec("one", str(model))
    written = write_outputs(prompts, spec, GREEDY, tmp_path / "out", opener=Fake)
    flags = {
        o.text: o.flags for o in read_outputs(tmp_path / "out", prompts, spec, written.fingerprint, 1).outputs
    }
    assert all(flags[text] == ["role_header"] for text in texts[:5])
    assert flags["Fine."] == []
    assert flags[""] == ["empty"]
    assert flags["Fine.<|im_end|>"] == ["template_token"]
    assert "repetition" in flags[texts[8]]
    assert flags["Fine, but cut"] == ["truncated"]


def test_an_adapter_folder_writes_as_base_and_adapter_together(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base, _ = open_model(find_model(str(model)), device="cpu", dtype="float32")
    tuned = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    tuned.peft_config["default"].base_model_name_or_path = str(model)
    tuned.save_pretrained(tmp_path / "adapter")
    ours = outputs_of(tmp_path / "adapter", tmp_path / "out", GREEDY)
    plain = outputs_of(model, tmp_path / "out", GREEDY)
    assert [o.text for o in ours.outputs] != [o.text for o in plain.outputs]
    assert identify_model(ModelSpec("a", str(tmp_path / "adapter")), GREEDY).provenance["adapter_of"] == str(
        model
    )


def test_the_known_answers_of_a_set_can_stand_for_a_model(tmp_path: Path) -> None:
    prompts = [PromptRecord.of([{"role": "user", "content": text}], reference=text * 2) for text in "ab"]
    spec = ModelSpec("human", REFERENCE)
    written = write_outputs(prompts, spec, SAMPLED, tmp_path / "out")
    found = read_outputs(tmp_path / "out", prompts, spec, written.fingerprint, 2)
    assert [(o.text, o.sample, o.finished) for o in found.outputs] == [("aa", 0, True), ("bb", 0, True)]
    with pytest.raises(DataError, match="11 of 11 prompts have no known answer"):
        write_outputs(PROMPTS, spec, SAMPLED, tmp_path / "out")


def test_outputs_in_alpacaevals_form_can_stand_for_a_model(tmp_path: Path) -> None:
    def entries(generator: str, texts: str) -> list[dict[str, str]]:
        return [{"instruction": text, "output": text * 2, "generator": generator} for text in texts]

    prompts = [PromptRecord.of([{"role": "user", "content": text}]) for text in "abc"]
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps(entries("gpt", "bax")))
    spec = ModelSpec("theirs", f"outputs:{path}")
    written = write_outputs(prompts, spec, SAMPLED, tmp_path / "out")
    found = read_outputs(tmp_path / "out", prompts, spec, written.fingerprint, 2)
    assert [(o.model, o.text, o.sample) for o in found.outputs] == [("theirs", "aa", 0), ("theirs", "bb", 0)]
    assert found.left_out == {prompts[2].id: "no output in outputs.json"}
    path.write_text(json.dumps(entries("gpt", "ba")))
    assert identify_model(spec, SAMPLED).fingerprint != written.fingerprint
    for content, message in (
        (entries("a", "a") + entries("b", "b"), "2 models"),
        (entries("a", "z"), "no output for any"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            write_outputs(prompts, spec, SAMPLED, tmp_path / "out")
    with pytest.raises(DataError, match="cannot be read"):
        identify_model(ModelSpec("theirs", "outputs:nowhere.json"), SAMPLED)


def test_two_processes_do_not_write_one_file(model: Path, tmp_path: Path) -> None:
    with JsonLinesFile(tmp_path / "out"), pytest.raises(DataError, match="another process"):
        write_outputs(PROMPTS, ModelSpec("one", str(model)), GREEDY, tmp_path / "out")


def test_contradicting_settings_are_refused_by_name() -> None:
    for name, value, default in (
        ("tensor_parallel_size", 2, "1"),
        ("max_model_len", 64, "null"),
        ("gpu_memory_utilization", 0.5, "0.9"),
        ("quantization", "fp8", "null"),
        ("enforce_eager", True, "false"),
    ):
        message = (
            rf"generation\.{name} is {value!r}, which only generation.engine=vllm knows; set it to {default}"
        )
        with pytest.raises(ConfigError, match=message):
            GenerationSettings(**{name: value})
        GenerationSettings(engine="vllm", **{name: value})
    with pytest.raises(ConfigError, match="do_sample must not be true"):
        GenerationSettings(temperature=0, do_sample=True)
    assert GenerationSettings().resolved_precision("cuda") == "bfloat16"


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
         {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Why?"}]  # fmt: skip


def test_a_conversation_is_given_as_messages_or_as_the_text_that_hh_models_read() -> None:
    assert model_prompt(TURNS) == TURNS
    asked = model_prompt(TURNS, template="In a word: {prompt}")
    assert asked == [*TURNS[:3], {"role": "user", "content": "In a word: Why?"}]
    text = "\n\nBe brief.\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    assert model_prompt(TURNS, prompt_format="text") == text
    assert model_prompt(TURNS, has_chat_template=False) == text
    assert model_prompt(TURNS, prompt_format="chat", has_chat_template=False) == TURNS
    whole = model_prompt(TURNS, prompt_format="text", template="<{prompt}>")
    assert whole == "<Be brief.\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?>"
