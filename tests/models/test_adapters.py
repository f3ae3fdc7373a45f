"""A model's files, with or without an adapter: found, told apart by a fingerprint, and opened together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.models.adapters import find_model, open_model, pick_device, text_fingerprint
from tiny import tiny_llama, word_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def test_an_adapter_is_opened_on_its_base_and_has_another_fingerprint(model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base, _ = open_model(find_model(str(model)), device="cpu", dtype="float32")
    tuned = get_peft_model(
        base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    tuned.peft_config["default"].base_model_name_or_path = str(model)
    tuned.save_pretrained(tmp_path / "adapter")
    files = find_model(str(tmp_path / "adapter"))
    assert (files.base.location, files.adapter) == (str(model), tmp_path / "adapter")
    loaded, _ = open_model(files, device="cpu", dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, tuned.eval()(ids).logits, rtol=0, atol=0)
    assert text_fingerprint(files) != text_fingerprint(find_model(str(model)))


def test_an_adapter_that_names_no_base_or_does_not_fit_is_named(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 2}')
    with pytest.raises(ModelError, match="names no base model"):
        find_model(str(folder))
    settings = {
        "base_model_name_or_path": str(model),
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["nothing"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="does not fit"):
        open_model(find_model(str(folder)), device="cpu", dtype="float32")
    settings["base_model_name_or_path"] = str(folder)
    other = tmp_path / "second"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    with pytest.raises(ModelError, match="itself an adapter"):
        find_model(str(other))


def test_hub_names_are_fetched_at_their_revision_and_local_models_have_none(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def fetch(name: str, *, revision: str | None, ignore_patterns: list[str]) -> str:
        asked.append((name, revision))
        if name == "some/missing":
            raise OSError("offline")
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_model("some/model", revision="v2").base.location == str(model)
    assert asked == [("some/model", "v2")]
    with pytest.raises(ModelError, match=r"some/missing.*could not be fetched: offline"):
        find_model("some/missing")
    with pytest.raises(ConfigError, match=r"revision is 'v2', but .* is local and has no revisions"):
        find_model(str(model), revision="v2")
    with pytest.raises(ConfigError, match=r"models\.m\.revision"):
        ModelSpec("m", str(model), revision="v2").find_files()


def test_a_device_that_is_unknown_or_not_there_is_refused() -> None:
    assert pick_device("auto") in ("cpu", "cuda")
    with pytest.raises(ConfigError, match=r"^device must be auto, cpu, cuda or cuda:0 …, got 'toaster'"):
        pick_device("toaster")
    with pytest.raises(ConfigError, match=r"^generation\.device must be auto"):
        pick_device("toaster", setting="generation.device")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            pick_device("cuda:1")
