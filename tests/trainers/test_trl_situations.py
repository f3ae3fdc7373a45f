"""What TRL's own tests do with its `DPOTrainer`, done with ours: a table of situations and of what becomes of each.

The situations are those of `tests/test_dpo_trainer.py` in TRL's repository shortly before 1.16, one entry a set
of its parameters, with tiny local models and rows in the place of those on the hub. `SUPPORTED` do what TRL does,
`REFUSED_BY_BOTH` are errors of 1.16 too, `IN_ANOTHER_WAY` come to the same by another road and say so, and `REFUSED`
end in a sentence that says why and what to do. `MORE` are habits of scripts that those tests leave out.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset, DatasetDict, IterableDatasetDict
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dynamic_dpo.errors import ConfigError, DataError, ModelError
from dynamic_dpo.methods.objective.trl_names import LOSSES
from dynamic_dpo.trainers import RiskBetaDPOTrainer
from families.configurations import tiny_model
from places import ROOT
from tiny import random_pairs, tiny_llama, word_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing.*` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning"),
]

# Roles, and the end of a turn, as words that the tokenizer knows; `loud` is a setting that a row may have.
TEMPLATE = (
    "{% for m in messages %}"
    "{{ {'system': 'w80', 'user': 'w81', 'assistant': 'w82'}[m['role']] }}{{ ' w85' if loud else '' }} "
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}w82{{ ' w85' if loud else '' }} {% endif %}"
)


@dataclass
class Desk:
    """A folder, and what a script for TRL brings along: arguments, a model by its name, rows."""

    folder: Path
    log: pytest.LogCaptureFixture
    number: int = 0

    def args(self, **settings: Any) -> DPOConfig:
        return DPOConfig(
            **{
                "output_dir": str(self.folder / "run"),
                "learning_rate": 1e-2,
                "max_steps": 3,
                "report_to": "none",
                "logging_steps": 1,
                "save_strategy": "no",
                "use_cpu": True,
                "bf16": False,
                "disable_tqdm": True,
                **settings,
            }
        )

    def named(self, model: Any = None, tokenizer: Any = None) -> str:
        """The name of a model on disk, with its tokenizer beside it."""
        self.number += 1
        folder = self.folder / f"model-{self.number}"
        (tiny_llama(seed=1) if model is None else model).save_pretrained(folder)
        (word_tokenizer(template=TEMPLATE) if tokenizer is None else tokenizer).save_pretrained(folder)
        return str(folder)

    def trainer(self, model: Any = None, args: Any = None, **given: Any) -> RiskBetaDPOTrainer:
        if model is not None and not isinstance(model, str):
            given.setdefault("processing_class", word_tokenizer(template=TEMPLATE))
        given.setdefault("train_dataset", rows())
        return RiskBetaDPOTrainer(
            model=self.named() if model is None else model,
            args=self.args() if args is None else args,
            **given,
        )


def words(ids: list[int]) -> str:
    return " ".join(f"w{i % 80}" for i in ids)


def rows(count: int = 18, *, chat: bool = False, prompt: bool = True, seed: int = 3) -> Dataset:
    """Pairs of texts or of conversations, with a prompt of their own or at the head of both answers."""
    table = []
    for pair in random_pairs(count, seed=seed):
        asked, chosen, rejected = (words(pair[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))
        if chat:
            head: Any = [{"role": "user", "content": asked}]
            answers: Any = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
        else:
            head, answers = asked, [f" {chosen}", f" {rejected}"]
        row = {"prompt": head, "chosen": answers[0], "rejected": answers[1]}
        if not prompt:
            row = {name: head + answer for name, answer in zip(("chosen", "rejected"), answers, strict=True)}
        table.append(row)
    return Dataset.from_list(table)


def pictures(count: int = 8, **more: Any) -> Dataset:
    """Conversations about a picture, as data sets for vision models hold them."""
    asked = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "w1 w2"}]}
    ]
    answers = [[{"role": "assistant", "content": [{"type": "text", "text": text}]}] for text in ("w3", "w4")]
    row = {"prompt": asked, "chosen": answers[0], "rejected": answers[1], "images": [b"\x89PNG"]}
    return Dataset.from_list([row | more] * count)


def stream(of: Dataset | None = None) -> Any:
    return (of or rows()).to_iterable_dataset()


def trains(trainer: RiskBetaDPOTrainer, *, frozen: str = "(?!)") -> RiskBetaDPOTrainer:
    """Train, and compare: every weight has moved but for those whose names hold ``frozen``."""
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
    for name, old in before.items():
        same = torch.equal(old, trainer.model.get_parameter(name))
        assert same == bool(re.search(frozen, name)), f"{name} {'stayed' if same else 'moved'}"
    return trainer


# Names of an adapter's weights hold one of these; all others are the base's.
BASE = r"^(?!.*\.(lora_A|lora_B)\.)"

# ---- supported ----


def family(name: str) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        # Of a Qwen transformers takes the tokenizer for its own byte pairs, whatever the files say.
        tokenizer = word_tokenizer() if name == "qwen2" else None
        trainer = trains(desk.trainer(desk.named(tiny_model(name)), processing_class=tokenizer))
        if trainer.aux_loss_enabled:
            assert trainer.state.log_history[0]["aux_loss"] > 0

    return situation


def other_tokenizer(desk: Desk) -> None:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    trainer = trains(desk.trainer(desk.named(tiny_model("lfm2"), tokenizer)))
    assert {ids[0] for ids in trainer.train_dataset["prompt_ids"]} == {1}


def several(kind: str, of: Any) -> Any:
    """One evaluation set, or two by their names, in either kind of dict."""
    if kind == "a set":
        return of
    streams = not isinstance(of, Dataset)
    both = {"data1": of, "data2": of}
    return both if kind == "a dict" else (IterableDatasetDict if streams else DatasetDict)(both)


def has_losses(metrics: dict[str, float], kind: str) -> None:
    names = ["eval_loss"] if kind == "a set" else ["eval_data1_loss", "eval_data2_loss"]
    assert all(metrics[name] > 0 for name in names)


def evaluates(kind: str, precompute: bool) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        trainer = desk.trainer(args=desk.args(precompute_ref_log_probs=precompute))
        has_losses(trainer.evaluate(several(kind, rows(4, seed=5))), kind)

    return situation


def evaluates_after(kind: str) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        given = several(kind, rows(4, seed=5))
        trainer = desk.trainer(args=desk.args(precompute_ref_log_probs=True), eval_dataset=given)
        trainer.train()
        has_losses(trainer.evaluate(), kind)

    return situation


def format_of(**kind: Any) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        trains(desk.trainer(train_dataset=rows(**kind)))

    return situation


def template_of_trl(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def harmony(desk: Desk) -> None:
    table = rows(chat=True).to_list()
    for row in table:
        for answer, thought in (("chosen", "w70 w71"), ("rejected", "w72")):
            row[answer][0]["thinking"] = thought
        row["chat_template_kwargs"] = {"reasoning_effort": "low", "model_identity": "w73"}
    tokenizer = word_tokenizer(template=template_of_trl("gptoss"))
    trainer = trains(
        desk.trainer(desk.named(tiny_model("gpt_oss"), tokenizer), train_dataset=Dataset.from_list(table))
    )
    pair = trainer.train_dataset[0]
    text = {name: tokenizer.decode(pair[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
    assert "w73" in text["prompt"]
    assert "w70 w71" in text["chosen"]
    assert "w72" in text["rejected"]


def loaded(desk: Desk) -> None:
    name = desk.named()
    model = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
    trains(desk.trainer(model, processing_class=None))


def loss(name: str) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        smoothing = 1e-3 if name == "exo_pair" else 0.0
        args = desk.args(loss_type=name, label_smoothing=smoothing, eval_strategy="steps", eval_steps=3)
        trainer = trains(desk.trainer(args=args, eval_dataset=rows(4, seed=5)))
        assert any("eval_loss" in entry for entry in trainer.state.log_history)

    return situation


def with_arguments(**settings: Any) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        trains(desk.trainer(args=desk.args(**settings)))

    return situation


def given_reference(desk: Desk) -> None:
    name = desk.named()
    reference = AutoModelForCausalLM.from_pretrained(name, dtype="float32")
    before = {key: weight.clone() for key, weight in reference.state_dict().items()}
    trainer = trains(desk.trainer(name, ref_model=reference))
    assert all(torch.equal(weight, before[key]) for key, weight in trainer.ref_model.state_dict().items())


def following_reference(desk: Desk) -> None:
    trainer = desk.trainer(args=desk.args(sync_ref_model=True, ref_model_sync_steps=2))
    before = {name: weight.clone() for name, weight in trainer.ref_model.named_parameters()}
    trains(trainer)
    assert not any(torch.equal(old, trainer.ref_model.get_parameter(name)) for name, old in before.items())


EXPERTS = {"target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]}


def fresh_adapter(desk: Desk) -> None:
    trains(desk.trainer(peft_config=LoraConfig()), frozen=BASE)


def fresh_adapter_of_experts(desk: Desk) -> None:
    name = desk.named(tiny_model("gpt_oss"))
    trains(desk.trainer(name, peft_config=LoraConfig(**EXPERTS)), frozen=BASE)


def adapted_model(desk: Desk) -> None:
    trains(desk.trainer(get_peft_model(tiny_llama(seed=1), LoraConfig())), frozen=BASE)


def adapted_experts(desk: Desk) -> None:
    model = get_peft_model(tiny_model("gpt_oss"), LoraConfig(**EXPERTS))
    trainer = trains(desk.trainer(model), frozen=BASE)
    assert "ref" not in trainer.model.peft_config


def adapter_recomputed(desk: Desk) -> None:
    args = desk.args(gradient_checkpointing=True)
    trains(desk.trainer(args=args, peft_config=LoraConfig()), frozen=BASE)


def padding_free(desk: Desk) -> None:
    # FlashAttention's kernels need a GPU; rows lie end to end without them, too.
    trainer = trains(desk.trainer(args=desk.args(padding_free=True)))
    assert trainer.policy.scorer.packed
    assert "padding_free=True: rows are packed without padding" in desk.log.text


def settings_of_rows(desk: Desk) -> None:
    table = rows(chat=True)
    table = table.add_column("chat_template_kwargs", [{"loud": bool(i % 2)} for i in range(len(table))])
    trainer = desk.trainer(train_dataset=table)
    tokenizer = trainer.processing_class
    assert tokenizer.chat_template == TEMPLATE
    starts = [tokenizer.decode(trainer.train_dataset[i]["prompt_ids"][:2]) for i in range(2)]
    assert starts[1] == "w81 w85"
    assert starts[0].startswith("w81")
    assert "w85" not in starts[0]
    trains(trainer)


def prompt_without_room(desk: Desk) -> None:
    long = {"prompt": words([*range(12)]), "chosen": " w1", "rejected": " w2"}
    table = Dataset.from_list([{"prompt": "w1 w2", "chosen": " w3", "rejected": " w4"}, long])
    # Half of the rows: more than is set aside without being asked.
    trainer = desk.trainer(args=desk.args(max_length=6), train_dataset=table, quarantine_max_share=0.5)
    assert list(trainer.train_dataset["prompt_ids"]) == [trainer.processing_class("w1 w2")["input_ids"]]


def tools(desk: Desk) -> None:
    call = {"type": "function", "function": {"name": "w60", "arguments": {"w61": "w62"}}}
    described = {"type": "function", "function": {"name": "w60", "description": "w63", "parameters": {}}}
    row = {
        "prompt": [{"role": "user", "content": "w1 w2"}],
        "chosen": [{"role": "assistant", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "w64"}],
        "tools": json.dumps([described]),
    }
    tokenizer = word_tokenizer(template=template_of_trl("qwen2_5"))
    model = desk.named(tokenizer=tokenizer)
    args = desk.args(max_length=512, per_device_train_batch_size=2)
    trainer = trains(desk.trainer(model, args, train_dataset=Dataset.from_list([row] * 8)))
    pair = trainer.train_dataset[0]
    assert "w63" in tokenizer.decode(pair["prompt_ids"])
    assert {"w60", "w61", "w62"} <= {*tokenizer.decode(pair["chosen_ids"]).split()}


def evaluated(kind: str) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        given = several(kind, rows(4, seed=5))
        trainer = desk.trainer(args=desk.args(eval_strategy="steps", eval_steps=3), eval_dataset=given)
        trainer.train()
        has_losses({key: value for entry in trainer.state.log_history for key, value in entry.items()}, kind)

    return situation


def tokenised(name: str, given: Callable[[], Any]) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        data = getattr(desk.trainer(**{name: given()}), name)
        parts = data.values() if isinstance(data, dict) else [data]
        assert given() is None or not isinstance(given(), dict) or {*data} == {"data1", "data2"}
        assert all(part is None or "prompt_ids" in part.column_names for part in parts)

    return situation


def own_metrics(desk: Desk) -> None:
    args = desk.args(eval_strategy="steps", eval_steps=3)
    trainer = desk.trainer(args=args, eval_dataset=rows(4), compute_metrics=lambda _: {"my_metric": 0.123})
    trainer.train()
    assert trainer.state.log_history[-2]["eval_my_metric"] == 0.123


def tags(**given: Any) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        trainer = desk.trainer(**given)
        # TRL's own name is not on what it did not train.
        assert {"dpo", "dynamic-dpo"} <= {*trainer.model.model_tags}

    return situation


def quantised(desk: Desk) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("4-bit weights need the package bitsandbytes")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(desk.named(), quantization_config=settings)
    trains(desk.trainer(model, peft_config=LoraConfig()), frozen=BASE)


def no_picture(**kind: Any) -> Callable[[Desk], None]:
    def situation(desk: Desk) -> None:
        name = desk.named(tiny_model("qwen2_5_vl"))
        trains(desk.trainer(name, train_dataset=rows(**kind)), frozen=r"\bvisual\.")

    return situation


KINDS = ("a set", "a DatasetDict", "a dict")
SUPPORTED: dict[str, Callable[[Desk], None]] = {
    **{
        f"trains {name}": family(name)
        for name in ("cohere2", "glm4_moe", "gpt_oss", "qwen2", "qwen3_moe", "nemotron_h", "olmo3", "lfm2")
    },
    "trains lfm2 with a tokenizer that begins every text": other_tokenizer,
    **{
        f"evaluate() of {kind}{', precomputed' if precompute else ''}": evaluates(kind, precompute)
        for kind in KINDS
        for precompute in (False, True)
    },
    **{f"evaluate() after training of {kind} given at the start": evaluates_after(kind) for kind in KINDS},
    "texts": format_of(),
    "conversations": format_of(chat=True),
    "texts without a prompt column": format_of(prompt=False),
    "conversations without a prompt column": format_of(chat=True, prompt=False),
    "thoughts and settings of gpt-oss": harmony,
    "a loaded model": loaded,
    **{f"loss_type {name}": loss(name) for name in LOSSES},
    "three losses": with_arguments(loss_type=["sigmoid", "bco_pair", "sft"]),
    "use_weighting": with_arguments(use_weighting=True),
    "ld_alpha": with_arguments(ld_alpha=0.5),
    **{
        f"f_divergence_type {name}": with_arguments(f_divergence_type=name)
        for name in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
    },
    "a loaded ref_model": given_reference,
    "sync_ref_model": following_reference,
    "a fresh adapter": fresh_adapter,
    "a fresh adapter of experts": fresh_adapter_of_experts,
    "a model with an adapter": adapted_model,
    "a model with an adapter of experts": adapted_experts,
    "a fresh adapter, gradient_checkpointing": adapter_recomputed,
    "padding_free": padding_free,
    "a column chat_template_kwargs": settings_of_rows,
    "a prompt that fills max_length": prompt_without_room,
    "calls of tools": tools,
    "eval_strategy, one set": evaluated("a set"),
    "eval_strategy, two sets": evaluated("a dict"),
    "train_dataset: a set": tokenised("train_dataset", rows),
    **{
        f"eval_dataset: {kind}": tokenised("eval_dataset", lambda kind=kind: several(kind, rows(4)))
        for kind in KINDS
    },
    "eval_dataset: none": tokenised("eval_dataset", lambda: None),
    "compute_metrics": own_metrics,
    "gradient_checkpointing": with_arguments(gradient_checkpointing=True),
    "tags": tags(),
    "tags of an adapter": tags(peft_config=LoraConfig()),
    "an adapter on 4-bit weights": quantised,
    "a vision model on texts": no_picture(),
    "a vision model on conversations": no_picture(chat=True),
}

# ---- refused ----

Refusal = tuple[Callable[[Desk], Any], type[Exception], str]
STREAM = "streams cannot be used, .* Load the set without streaming=True, or take a part of the stream"
PICTURE = "has_images means: the row has images, sound or video, and pairs are trained on as text alone"
LIGER = "use_liger_kernel=True: .* leave it out"


def evaluates_stream(kind: str, **settings: Any) -> Callable[[Desk], Any]:
    return lambda desk: desk.trainer(args=desk.args(**settings)).evaluate(several(kind, stream()))


def starts(**given: Any) -> Callable[[Desk], Any]:
    """Make a trainer with what is given: values, or functions that make them."""

    def situation(desk: Desk) -> Any:
        made = {name: value() if callable(value) else value for name, value in given.items()}
        settings = made.pop("settings", {})
        return desk.trainer(args=desk.args(**settings), **made)

    return situation


def new_set_after_training(desk: Desk) -> Any:
    trainer = desk.trainer(args=desk.args(precompute_ref_log_probs=True))
    assert trainer.evaluate(rows(4, seed=5))["eval_loss"] > 0
    trainer.train()
    return trainer.evaluate(rows(4, seed=6))


PRECOMPUTED = {"precompute_ref_log_probs": True}
LIGERS = {"use_liger_kernel": True}
HEAD = LoraConfig(target_modules=["q_proj", "lm_head"])
VIRTUAL = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
REFUSED_BY_BOTH: dict[str, Refusal] = {
    "evaluate() of a new set after training": (
        new_set_after_training,
        ModelError,
        "4 of 4 pairs without reference log-probabilities .* give it to the trainer as eval_dataset",
    ),
    **{
        f"evaluate() of {kind} of streams, precomputed": (
            evaluates_stream(kind, **PRECOMPUTED),
            DataError,
            STREAM,
        )
        for kind in KINDS
    },
    "train_dataset: a stream, precomputed": (
        starts(settings=PRECOMPUTED, train_dataset=stream),
        DataError,
        STREAM,
    ),
    **{
        f"eval_dataset: {kind} of streams, precomputed": (
            starts(settings=PRECOMPUTED, eval_dataset=lambda kind=kind: several(kind, stream())),
            DataError,
            STREAM,
        )
        for kind in KINDS
    },
    "Liger and an adapter of the head": (starts(settings=LIGERS, peft_config=HEAD), ConfigError, LIGER),
    "train_dataset: none": (starts(train_dataset=None), ConfigError, "train_dataset is required: give a"),
    "train_dataset: a DatasetDict": (
        starts(train_dataset=lambda: DatasetDict({"train": rows()})),
        ConfigError,
        "train_dataset is a DatasetDict of 'train': give one of them",
    ),
    "pictures for a text model": (starts(train_dataset=pictures), DataError, PICTURE),
    "pictures, precomputed": (starts(settings=PRECOMPUTED, train_dataset=pictures), DataError, PICTURE),
    "pictures, keep_end": (
        starts(settings={"truncation_mode": "keep_end", "max_length": 32}, train_dataset=pictures),
        DataError,
        PICTURE,
    ),
}


def vision(name: str, **settings: Any) -> Callable[[Desk], Any]:
    return lambda desk: desk.trainer(
        tiny_model(name), desk.args(max_length=None, **settings), train_dataset=pictures()
    )


COLLATOR = "the engine lays out each step's rows itself. .* columns prompt_ids, chosen_ids and rejected_ids"
REFUSED: dict[str, Refusal] = {
    **{
        f"a data_collator{what}": (
            starts(
                data_collator=lambda settings=settings: DataCollatorForPreference(pad_token_id=0, **settings)
            ),
            ConfigError,
            COLLATOR,
        )
        for what, settings in (
            ("", {}),
            (", with reference log-probabilities", {"max_length": 8}),
            (", padding to a multiple", {"pad_to_multiple_of": 5}),
        )
    },
    "a data_collator for pictures": (starts(data_collator=lambda: list), ConfigError, COLLATOR),
    "trust_remote_code": (
        starts(settings={"trust_remote_code": True}),
        ConfigError,
        "code that lies beside weights is never run: use a model that transformers knows",
    ),
    **{
        f"evaluate() of {kind} of streams": (evaluates_stream(kind), DataError, STREAM)
        for kind in ("a set", "a DatasetDict", "a dict")
    },
    "train_dataset: a stream": (starts(train_dataset=stream), DataError, STREAM),
    "trains on a stream": (
        lambda desk: trains(desk.trainer(train_dataset=stream())),
        DataError,
        STREAM,
    ),
    **{
        f"eval_dataset: {kind} of streams": (
            starts(eval_dataset=lambda kind=kind: several(kind, stream())),
            DataError,
            STREAM,
        )
        for kind in KINDS
    },
    "Liger": (starts(settings=LIGERS), ConfigError, LIGER),
    "Liger and an adapter": (starts(settings=LIGERS, peft_config=LoraConfig()), ConfigError, LIGER),
    "Liger and virtual tokens": (starts(settings=LIGERS, peft_config=VIRTUAL), ConfigError, LIGER),
    "Liger and experts": (
        lambda desk: desk.trainer(tiny_model("qwen3_moe"), desk.args(**LIGERS)),
        ConfigError,
        LIGER,
    ),
    "Liger and compute_metrics": (
        lambda desk: desk.trainer(args=desk.args(**LIGERS), compute_metrics=dict),
        ConfigError,
        LIGER,
    ),
    "Liger and pictures": (starts(settings=LIGERS, train_dataset=pictures), ConfigError, LIGER),
    **{
        f"pictures for {name}": (vision(name), DataError, PICTURE)
        for name in (
            "gemma3",
            "gemma4",
            "llava",
            "llava_next",
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "qwen3_5",
            "qwen3_5_moe",
            "gemma3n_text",
        )
    },
    "several pictures a row": (
        starts(train_dataset=lambda: pictures(images=[b"\x89PNG"] * 3)),
        DataError,
        PICTURE,
    ),
    "pictures, max_length": (
        starts(settings={"max_length": 37}, train_dataset=pictures),
        DataError,
        PICTURE,
    ),
}

# ---- in another way ----


def half_precision(desk: Desk) -> None:
    trainer = trains(desk.trainer(args=desk.args(model_init_kwargs={"dtype": torch.float16})))
    # The weights are those of float16, and steps too small for it are not lost.
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert "what is trained is held in float32" in desk.log.text


IN_ANOTHER_WAY: dict[str, Callable[[Desk], None]] = {"weights loaded in float16": half_precision}

# ---- habits beside ----


def resumes(desk: Desk) -> None:
    name = desk.named()
    whole = desk.trainer(name, desk.args(output_dir=str(desk.folder / "whole"), max_steps=4))
    whole.train()
    folder = {
        "output_dir": str(desk.folder / "cut"),
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
    }

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    desk.trainer(name, desk.args(**folder), callbacks=[Stop()]).train()
    again = desk.trainer(name, desk.args(**folder))
    again.train(resume_from_checkpoint=True)
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (whole, again)]
    assert losses[0] == losses[1]


def counts_steps(desk: Desk) -> None:
    seen = []

    class Counting(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((state.global_step, kwargs["model"] is not None))

    trains(desk.trainer(callbacks=[Counting()]))
    assert seen == [(1, True), (2, True), (3, True)]


def without_padding_token(desk: Desk) -> None:
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    trains(desk.trainer(desk.named(tokenizer=tokenizer)))


def own_optimizer(desk: Desk) -> None:
    model = tiny_llama(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    trainer = trains(desk.trainer(model, optimizers=(optimizer, schedule)))
    assert trainer.state.log_history[0]["learning_rate"] == 0.1


def adapter_of_the_head(desk: Desk) -> None:
    trains(desk.trainer(peft_config=HEAD), frozen=BASE)


def reentrant(desk: Desk) -> None:
    args = desk.args(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    trains(desk.trainer(args=args, peft_config=LoraConfig()), frozen=BASE)


def saved_model_loads(desk: Desk) -> None:
    trainer = trains(desk.trainer())
    trainer.save_model(str(desk.folder / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(desk.folder / "saved", dtype="float32")
    ours = trainer.model.state_dict()
    assert all(torch.equal(weight, ours[name]) for name, weight in saved.state_dict().items())


def two_processes(desk: Desk) -> None:
    trainer = desk.trainer(args=desk.args(dataset_num_proc=2))
    one = desk.trainer()
    assert trainer.train_dataset.to_list() == one.train_dataset.to_list()


MORE: dict[str, Callable[[Desk], None]] = {
    "weights of three losses": with_arguments(
        loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]
    ),
    "resume_from_checkpoint=True": resumes,
    "a callback of one's own": counts_steps,
    "a tokenizer without padding token": without_padding_token,
    "an optimizer of one's own": own_optimizer,
    "an adapter of the head": adapter_of_the_head,
    "an adapter, use_reentrant": reentrant,
    "activation_offloading": with_arguments(activation_offloading=True),
    "gradient_accumulation_steps": with_arguments(
        gradient_accumulation_steps=2, per_device_train_batch_size=2
    ),
    "pad_to_multiple_of": with_arguments(pad_to_multiple_of=8),
    "keep_end": with_arguments(truncation_mode="keep_end", max_length=12),
    "no limit of length": with_arguments(max_length=None),
    "a name for the hub, unused": with_arguments(hub_model_id="org/name", hub_strategy="end"),
    "dataset_num_proc": two_processes,
    "save_model": saved_model_loads,
}
MORE_REFUSED: dict[str, Refusal] = {
    "a loss that is none": (
        starts(settings={"loss_type": "dpo2"}),
        ConfigError,
        r"loss_type=\['dpo2'\]: 'dpo2' is none of sigmoid, hinge",
    ),
    "fewer weights than losses": (
        starts(settings={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}),
        ValueError,  # Of the arguments themselves.
        "must have the same length",
    ),
    "model and ref_model are one": (
        lambda desk: (lambda model: desk.trainer(model, ref_model=model))(tiny_llama()),
        ModelError,
        "the same object: leave ref_model out",
    ),
    "an adapter on an adapter": (
        lambda desk: desk.trainer(get_peft_model(tiny_llama(), LoraConfig()), peft_config=LoraConfig()),
        ModelError,
        "carries an adapter already: merge it first",
    ),
    "virtual tokens": (starts(peft_config=VIRTUAL), ModelError, "use an adapter inside the layers"),
    "sync_ref_model with an adapter": (
        starts(settings={"sync_ref_model": True}, peft_config=LoraConfig()),
        ConfigError,
        "reference_sync",
    ),
    "a model that does not say where it came from": (
        lambda desk: desk.trainer(tiny_llama(), processing_class=None),
        ModelError,
        "no tokenizer: pass processing_class",
    ),
}


@pytest.fixture
def desk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Desk:
    caplog.set_level(logging.WARNING, "dynamic_dpo")
    return Desk(tmp_path, caplog)


@pytest.mark.parametrize("name", [*SUPPORTED, *IN_ANOTHER_WAY, *MORE])
def test_a_habit_of_trl_works_here(name: str, desk: Desk) -> None:
    (SUPPORTED | IN_ANOTHER_WAY | MORE)[name](desk)


@pytest.mark.parametrize("name", [*REFUSED_BY_BOTH, *REFUSED, *MORE_REFUSED])
def test_a_habit_that_is_refused_ends_in_a_sentence(name: str, desk: Desk) -> None:
    use, kind, sentence = (REFUSED_BY_BOTH | REFUSED | MORE_REFUSED)[name]
    with pytest.raises(kind, match=sentence):
        use(desk)


def test_the_counts_are_those_that_the_page_gives() -> None:
    counts = {
        "do here what they do there": len(SUPPORTED),
        "are errors in both": len(REFUSED_BY_BOTH),
        "come about in another way": len(IN_ANOTHER_WAY),
        "are refused here alone": len(REFUSED),
    }
    assert len(SUPPORTED) >= 60
    page = (ROOT / "docs" / "trl.md").read_text()
    assert f"{sum(counts.values())} situations" in page
    for what, count in counts.items():
        assert f"| {count} | {what}" in page, (what, count)
    together = [*SUPPORTED, *REFUSED_BY_BOTH, *IN_ANOTHER_WAY, *REFUSED, *MORE, *MORE_REFUSED]
    assert len({*together}) == len(together)
