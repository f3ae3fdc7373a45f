"""Malicious checkpoints, models and tokenizers: no code of theirs runs, and each ends in one clear error."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.errors import CheckpointError, ModelError
from dynamic_dpo.methods import Risk, RiskConfig
from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.checkpoints.file_list import write_file_list
from places import ROOT, TESTS
from tiny import random_pairs, tiny_llama, training_arguments, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Payload:
    """Pickles as a call that leaves a file behind, which is what an attacker's payload would do."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def payloads(marker: Path) -> list[Payload]:
    code = f"open({str(marker)!r}, 'w').close()"
    return [
        Payload(exec, code),
        Payload(eval, code),
        Payload(os.system, f"touch {marker}"),
        Payload(subprocess.call, ["touch", str(marker)]),
        Payload(Path.touch, marker),
        Payload(os.mkdir, str(marker)),
    ]


def as_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps({"state": payload}, protocol=2))


def as_torch(path: Path, payload: Payload) -> None:
    torch.save({"state": payload, "param_groups": []}, path)


def as_old_torch(path: Path, payload: Payload) -> None:
    torch.save({"state": payload}, path, _use_new_zipfile_serialization=False)


# 15 files of a checkpoint that hold a pickle with a call, in the three ways there are to write one.
PICKLES: list[tuple[str, Callable[[Path, Payload], None], int]] = [
    ("optimizer.pt", as_torch, 0),
    ("optimizer.pt", as_pickle, 1),
    ("optimizer.pt", as_old_torch, 2),
    ("scheduler.pt", as_torch, 3),
    ("scheduler.pt", as_pickle, 4),
    ("scheduler.pt", as_old_torch, 5),
    ("rng_state.pth", as_torch, 0),
    ("rng_state.pth", as_pickle, 2),
    ("rng_state.pth", as_old_torch, 3),
    ("pytorch_model.bin", as_torch, 0),
    ("pytorch_model.bin", as_pickle, 4),
    ("pytorch_model.bin", as_old_torch, 1),
    ("training_args.bin", as_torch, 0),
    ("training_args.bin", as_pickle, 2),
    ("training_args.bin", as_old_torch, 5),
]


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


def outside_offsets(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)


def negative_offsets(path: Path) -> None:
    header = b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def nested_json(path: Path) -> None:
    path.write_text('{"a": ' * 100_000)


def other_json(path: Path) -> None:
    path.write_text('{"__class__": "os.system", "epoch": [], "max_steps": {}}')


# 7 files that are not pickles.
OTHERS = [
    ("model.safetensors", huge_header),
    ("model.safetensors", outside_offsets),
    ("model.safetensors", negative_offsets),
    ("trainer_state.json", nested_json),
    ("trainer_state.json", other_json),
    ("controller_state.json", nested_json),
    ("controller_state.json", other_json),
]


def make(folder: Path) -> PreferenceTrainer:
    return PreferenceTrainer(
        model=tiny_llama(),
        args=training_arguments(
            folder, max_steps=2, save_strategy="steps", save_steps=1, per_device_train_batch_size=2
        ),
        train_dataset=random_pairs(8),
        processing_class=word_tokenizer(),
        method=Risk(RiskConfig(warmup_steps=1), pairs_per_update=2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    os.environ["DYNAMIC_DPO_CACHE"] = str(folder / "cache")
    make(folder / "run").train()
    return folder / "run" / "checkpoint-1"


def resumed(run: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None]) -> None:
    """Resume from a copy of the checkpoint with one file replaced and a file list that vouches for it."""
    checkpoint = tmp_path / "run" / "checkpoint-1"
    shutil.copytree(run, checkpoint)
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    spoil(checkpoint / name)
    write_file_list(checkpoint)
    make(tmp_path / "run").train(resume_from_checkpoint=str(checkpoint))


def test_the_checkpoint_itself_is_resumed(run: Path, tmp_path: Path) -> None:
    resumed(run, tmp_path, "notes.txt", lambda path: path.write_text("harmless"))


@pytest.mark.parametrize(("name", "write", "number"), PICKLES)
def test_a_pickle_in_a_checkpoint_is_never_executed(
    name: str, write: Callable[[Path, Payload], None], number: int, run: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    payload = payloads(marker)[number]
    if name == "training_args.bin":  # Nothing reads it: the run goes on.
        resumed(run, tmp_path, name, lambda path: write(path, payload))
    else:
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            resumed(run, tmp_path, name, lambda path: write(path, payload))
    assert not marker.exists()


def test_every_payload_would_leave_its_mark_if_it_ran(tmp_path: Path) -> None:
    for number in range(6):
        marker = tmp_path / f"executed-{number}"
        pickle.loads(pickle.dumps(payloads(marker)[number]))
        assert marker.exists()


@pytest.mark.parametrize(("name", "spoil"), OTHERS)
def test_a_malicious_file_of_a_checkpoint_is_one_clear_error(
    name: str, spoil: Callable[[Path], None], run: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError):
        resumed(run, tmp_path, name, spoil)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("write", [as_torch, as_pickle, as_old_torch])
def test_a_model_that_is_a_pickle_is_not_executed(
    write: Callable[[Path, Payload], None], model_folder: Path, tmp_path: Path
) -> None:
    folder, marker = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    write(folder / "pytorch_model.bin", payloads(marker)[0])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(resolve_model(str(folder)))
    assert not marker.exists()


@pytest.mark.parametrize("spoil", [huge_header, outside_offsets, negative_offsets])
def test_a_model_with_a_malicious_header_is_one_clear_error(
    spoil: Callable[[Path], None], model_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    spoil(folder / "model.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(resolve_model(str(folder)))


def test_code_that_comes_with_a_model_or_tokenizer_does_not_run_and_nobody_is_asked(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(model_folder, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    evil = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    for name, kind in (("config.json", "model_type"), ("tokenizer_config.json", "tokenizer_class")):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, kind: "evil", "auto_map": evil}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(resolve_model(str(folder)))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(resolve_model(str(folder)))
    assert not marker.exists()


def test_trust_remote_code_is_nowhere_set_to_true() -> None:
    sources = ROOT / "src"
    text = "".join(path.read_text(encoding="utf-8") for path in sources.rglob("*.py"))
    assert "trust_remote_code" in text
    for forbidden in (
        "trust_remote_code=True",
        '"trust_remote_code": True',
        "weights_only=False",
        "pickle.load",
    ):
        assert forbidden not in text
    assert text.count("allow_pickle") == text.count("allow_pickle=False")


def test_import_construction_and_training_open_no_connection(model_folder: Path, tmp_path: Path) -> None:
    """In a process of its own: nothing that was imported or cached before may hide a call."""
    program = f"""
import socket, sys
def refuse(self, address, *rest):
    # Pairs of local sockets (of an event loop) are no connection to anywhere.
    if self.family in (socket.AF_INET, socket.AF_INET6):
        print("CONNECTION", address, flush=True)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = refuse
def lookup(*arguments, **rest):
    print("LOOKUP", arguments, flush=True)
    raise OSError("no network")
socket.getaddrinfo = socket.gethostbyname = lookup
sys.path.insert(0, {str(TESTS)!r})
import dynamic_dpo, dynamic_dpo.cli.main, dynamic_dpo.cli.train_dpo, dynamic_dpo.cli.train_sft, dynamic_dpo.data
from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers import PreferenceTrainer
from tiny import random_pairs, training_arguments
trainer = PreferenceTrainer(
    model={str(model_folder)!r}, args=training_arguments({str(tmp_path)!r}, max_steps=1),
    train_dataset=random_pairs(8), method=DPO(),
)
trainer.train()
print("trained", trainer.state.global_step)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "WANDB_"))}
    environment |= {"HOME": str(tmp_path), "DYNAMIC_DPO_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment
    )
    assert "trained 1" in ended.stdout, ended.stderr[-2000:]
    assert "CONNECTION" not in ended.stdout
    assert "LOOKUP" not in ended.stdout


def test_an_offline_run_asks_no_hub_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **rest: Any) -> Any:
        raise AssertionError(f"connected to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(resolve_model("no-such-owner/no-such-model"))
