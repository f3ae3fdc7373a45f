"""Training goes on with an adapter that was there before: what the reference is, and what is trained and saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.methods import DPO, DPOMethodConfig
from dynamic_dpo.methods.epsilon_dpo import EpsilonDPO, EpsilonDPOConfig
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.saved import save_and_check
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer


def write_adapter(folder: Path, base: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write an adapter that peft has made, its weights drawn anew so that it changes every answer."""
    settings = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "adapter", base)


def trainer_of(model: Any, folder: Path, **settings: Any) -> PreferenceTrainer:
    settings = {"method": DPO(DPOMethodConfig(beta=0.1)), **settings}
    return PreferenceTrainer(
        model,
        args=training_arguments(folder, max_steps=2, **settings.pop("args", {})),
        train_dataset=random_pairs(12),
        **settings,
    )


def summed_logps(model: Any, row: dict[str, Any], side: str) -> float:
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    with torch.no_grad():
        logps = model.eval()(ids).logits[0, :-1].log_softmax(-1)
    return float(logps.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum())


def adapted(folder: Path, base: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)


def counted(folder: Path) -> tuple[int, int]:
    summary = json.loads((folder / "run_summary.json").read_text())
    return summary["reference_computed"], summary["reference_reused"]


@pytest.mark.parametrize("named_base", [False, True])
@pytest.mark.parametrize("given", ["folder", "model"])
def test_the_reference_is_the_adapter_as_it_was_or_the_base(
    adapter: Path, base: Path, tmp_path: Path, given: str, named_base: bool
) -> None:
    model: Any = str(adapter)
    settings: dict[str, Any] = {}
    if given == "model":
        model = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), adapter, is_trainable=True
        )
        settings["processing_class"] = word_tokenizer()
        settings["reference_is_base"] = named_base
    elif named_base:
        settings["ref_model"] = str(base)
    trainer = trainer_of(model, tmp_path / "run", **settings)
    trainer.train()
    reference = AutoModelForCausalLM.from_pretrained(base) if named_base else adapted(adapter, base)
    for row in list(trainer.train_dataset)[:4]:
        for side in ("chosen", "rejected"):
            assert row[f"ref_{side}_logps"] == pytest.approx(summed_logps(reference, row, side), rel=1e-5)
    assert trainer.policy.reference_model is None  # No second model.

    save_and_check(trainer, tmp_path / "run")
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "run")
    )
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    again = adapted(tmp_path / "run", base)
    row = trainer.train_dataset[0]
    trained = summed_logps(trainer.model, row, "chosen")
    assert summed_logps(again, row, "chosen") == pytest.approx(trained, rel=1e-6)


def test_the_base_is_not_trained(adapter: Path, base: Path, tmp_path: Path) -> None:
    trainer = trainer_of(str(adapter), tmp_path / "run")
    trainer.train()
    with trainer.model.disable_adapter():
        ours = [summed_logps(trainer.model, row, "chosen") for row in random_pairs(3)]
    model = AutoModelForCausalLM.from_pretrained(base)
    assert ours == pytest.approx([summed_logps(model, row, "chosen") for row in random_pairs(3)], rel=1e-6)


def test_the_store_knows_adapters_apart_and_shares_the_base(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    def run(name: str, model: Path, **settings: Any) -> tuple[int, int]:
        trainer_of(str(model), tmp_path / name, **settings).train()
        return counted(tmp_path / name)

    assert run("base", base) == (12, 0)
    assert run("on base", adapter, ref_model=str(base)) == (0, 12)
    assert run("adapter", adapter) == (12, 0)
    assert run("again", shutil.copytree(adapter, tmp_path / "copy")) == (0, 12)
    assert run("other", write_adapter(tmp_path / "other", base, seed=1)) == (12, 0)
    # As the reference of another policy it is the same reference.
    assert run("reference", base, ref_model=str(adapter)) == (0, 12)


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("named_base", [False, True])
def test_a_live_reference_stays_where_it_was(base: Path, tmp_path: Path, bias: str, named_base: bool) -> None:
    model = tiny_llama()
    model.config.attention_bias = True
    type(model)(model.config).save_pretrained(base)
    adapter = write_adapter(tmp_path / "adapter", base, bias=bias)
    settings = {"ref_model": str(base)} if named_base else {}
    method = EpsilonDPO(EpsilonDPOConfig())
    trainer = trainer_of(
        str(adapter), tmp_path / "run", method=method, engine=EngineConfig(layout="plain"), **settings
    )
    trainer.train()
    reference = AutoModelForCausalLM.from_pretrained(base) if named_base else adapted(adapter, base)
    reference_model, _ = trainer.policy._reference_parts()
    with trainer.policy._as_reference():
        found = [summed_logps(reference_model, row, "chosen") for row in random_pairs(3)]
    assert found == pytest.approx(
        [summed_logps(reference, row, "chosen") for row in random_pairs(3)], rel=1e-5
    )


def test_recomputed_activations_give_the_same_weights(adapter: Path, tmp_path: Path) -> None:
    found = []
    for name, args in (("kept", {}), ("recomputed", {"activation_checkpointing": True})):
        trainer = trainer_of(str(adapter), tmp_path / name, args=args)
        trainer.train()
        save_and_check(trainer, tmp_path / name)
        found.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_trained_or_be_a_reference_is_refused(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    closed = adapted(adapter, base)
    with pytest.raises(ModelError, match=r"no weight of the .* is to be trained: .*is_trainable=True"):
        trainer_of(closed, tmp_path / "run", processing_class=word_tokenizer())
    with pytest.raises(ConfigError, match="reference_is_base is for a policy with an adapter"):
        trainer_of(str(base), tmp_path / "run", reference_is_base=True)
    with pytest.raises(ConfigError, match="two references"):
        trainer_of(str(adapter), tmp_path / "run", reference_is_base=True, ref_model=str(adapter))
    with pytest.raises(ModelError, match="carries an adapter already"):
        trainer_of(str(adapter), tmp_path / "run", peft_config=LoraConfig(r=2))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="does not fit"):
        trainer_of(str(adapter), tmp_path / "run")
