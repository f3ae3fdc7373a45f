"""What a training leaves: whole models, whatever way they were held while training, compared before they count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.trainers.checkpoints.file_list import fault_of
from dynamic_dpo.trainers.checkpoints.saved import check_saved_weights
from helpers_ranks import SECONDS, launched
from tiny import tiny_llama


def test_experts_in_one_tensor_are_found_again_in_the_many_that_are_saved(tmp_path: Path) -> None:
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=96,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    )
    model.save_pretrained(tmp_path)
    per_layer = 2 + 4 + 1 + 4 * 3  # norms, attention, router, experts
    assert check_saved_weights(tmp_path, model) == 3 + 2 * per_layer
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.experts.down_proj")[3, 0, 0] += 1e-3
    with pytest.raises(
        CheckpointError, match=r"does not hold the trained model\.layers\.1\..*experts\.3\.w2"
    ):
        check_saved_weights(tmp_path, model)


def test_a_model_saved_in_another_type_is_not_what_was_trained(tmp_path: Path) -> None:
    tiny_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not hold the trained"):
        check_saved_weights(tmp_path, tiny_llama(dtype=torch.bfloat16).float())


@pytest.mark.timeout(SECONDS + 30)
def test_sharded_runs_leave_whole_models_and_their_faults_end_every_rank(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    first, second = launched("distributed_saving.py", folder, ranks=2, sharded=True)

    for name, tensors in {"full": 21, "tied": 20, "alone": 21, "whole": 21}.items():
        weights = torch.load(folder / name / "weights.pt")
        one_process = tiny_llama()
        assert not torch.equal(weights["model.norm.weight"], one_process.model.norm.weight), "nothing learnt"
        for saved in (folder / name / "final", folder / name / "by_hand"):
            assert len(load_file(saved / "model.safetensors")) == tensors
            reloaded = AutoModelForCausalLM.from_pretrained(saved)
            assert type(reloaded) is type(one_process)
            assert reloaded.state_dict().keys() == weights.keys()
            for key, value in reloaded.state_dict().items():
                assert value.dtype == torch.float32
                assert torch.equal(value, weights[key]), key
            assert AutoTokenizer.from_pretrained(saved).chat_template == "{{ messages }}"
        config = json.loads((folder / name / "final" / "config.json").read_text())
        assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")

    weights = torch.load(folder / "lora" / "weights.pt")
    for saved in (folder / "lora" / "final", folder / "lora" / "by_hand"):
        adapted = PeftModel.from_pretrained(tiny_llama(), saved).state_dict()
        assert adapted.keys() == weights.keys()
        assert len(load_file(saved / "adapter_model.safetensors")) == 8
        assert all(torch.equal(value, weights[key]) for key, value in adapted.items())
        assert any("lora_B" in key and value.abs().max() > 0 for key, value in adapted.items())

    # A checkpoint of shards has everything else that makes a model; one of whole weights is one.
    assert not list((folder / "full" / "checkpoint-2").glob("*.safetensors"))
    for name, present in {
        "full": ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"),
        "lora": ("adapter_config.json", "tokenizer.json", "chat_template.jinja"),
        "whole": ("config.json", "model.safetensors", "tokenizer.json"),
        "alone": ("config.json", "model.safetensors", "tokenizer.json"),
    }.items():
        checkpoint = folder / name / "checkpoint-2"
        assert [file for file in present if not (checkpoint / file).is_file()] == []
        assert fault_of(checkpoint) is None

    alone = [path.name for path in (folder / "alone" / "checkpoint-2").iterdir() if path.is_dir()]
    assert alone == []

    assert first == second
    assert "does not hold the trained model.norm.weight" in first["changed"]
    assert "it is incomplete" in first["lost"]
    assert "No space left on device" in first["full disk"]
