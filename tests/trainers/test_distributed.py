"""Two ranks: one controller state everywhere, and the training of one rank with the same pairs."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dynamic_dpo.config import get_training_config
from dynamic_dpo.errors import ConfigError, DynamicDPOError, ModelError
from dynamic_dpo.methods import DPO
from dynamic_dpo.trainers import PreferenceTrainer
from dynamic_dpo.trainers.arguments import check_parallelism, whole_step_arguments
from dynamic_dpo.trainers.ranks import check_ranks_agree, clear_rank_errors, hash_of
from helpers_ranks import HERE, SECONDS, launched
from tiny import training_arguments


@pytest.mark.timeout(2 * SECONDS + 30)
def test_two_ranks_train_as_one_and_hold_one_controller_state(tmp_path: Path) -> None:
    first, second = launched("distributed_run.py", tmp_path / "two", "step", 4, ranks=2)
    (alone,) = launched("distributed_run.py", tmp_path / "one", "step", 8, ranks=1)
    assert (first["ranks"], alone["ranks"]) == (2, 1)
    assert first["state"] == second["state"]
    assert first["updates"] == alone["updates"] == 6
    assert first["pairs_seen"] == alone["pairs_seen"] == 48

    beta, tau = alone["state"]["beta"], alone["state"]["test"]["tau"]
    assert beta != 0.1
    assert first["state"]["beta"] == pytest.approx(beta, rel=1e-10)
    assert first["state"]["test"]["tau"] == pytest.approx(tau, rel=1e-10)
    weights = [
        torch.load(tmp_path / name) for name in ("two/weights_0.pt", "two/weights_1.pt", "one/weights_0.pt")
    ]
    for name, expected in weights[2].items():
        assert expected.dtype == torch.float64
        assert torch.equal(weights[0][name], weights[1][name])
        assert (weights[0][name] - expected).norm() <= 1e-10 * expected.norm(), name

    # Logged numbers travel in float32.
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert first["margins"] == pytest.approx(alone["margins"], rel=1e-4, abs=1e-5)
    # Seven pairs on two ranks: the one that evens the ranks out is counted once.
    assert first["eval"] == pytest.approx(alone["eval"], rel=1e-4, abs=1e-5)
    assert first["eval"] == second["eval"]

    summary = json.loads((tmp_path / "two" / "run" / "run_summary.json").read_text())
    assert (summary["num_ranks"], summary["reference_computed"], summary["pairs_per_update"]) == (2, 31, 8)
    log = tmp_path / "two" / "run" / "logs" / "margins"
    batches = {
        path: [json.loads(line)["batch_size"] for line in path.read_text().splitlines()]
        for path in log.rglob("margins.jsonl")
    }
    assert batches == {
        log / "margins.jsonl": [8] * 6,
        log / "rank_000" / "margins.jsonl": [4] * 6,
        log / "rank_001" / "margins.jsonl": [4] * 6,
    }
    assert (tmp_path / "two" / "run" / "checkpoint-6" / "controller_state.json").is_file()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("deepspeed", "zero3.json", "DeepSpeed is not supported"),
        ("parallelism_config", object(), "tensor, context and sequence parallelism are not supported"),
        ("enable_jit_checkpoint", True, "a signal already ends training in a checkpoint"),
        ("_n_gpu", 2, "DataParallel is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_at_the_start_in_a_sentence(
    tmp_path: Path, name: str, value: object, why: str
) -> None:
    args = training_arguments(tmp_path)
    setattr(args, name, value)
    with pytest.raises(ConfigError, match=why):
        whole_step_arguments(args)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed is not supported: use DDP or FSDP2"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not supported: use DDP or FSDP2"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism are not supported"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1 is not supported: set fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP1 is not supported: set fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "engine.gradient_checkpointing=true in the run's settings",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train_dpo", "train_sft"])
def test_what_the_launcher_was_asked_for_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, environment: dict[str, str], why: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    section = "dpo_training" if command == "train_dpo" else "sft_training"
    settings = {
        "policy_name": str(tmp_path / "no such model"),
        "precision": "fp32",
        "dataset": {"dataset_name": str(tmp_path / "no such data")},
        section: {"save_dir": str(tmp_path / "run")},
    }
    train = getattr(importlib.import_module(f"dynamic_dpo.cli.{command}"), command)
    with pytest.raises(ConfigError, match=re.escape(why)):
        train(get_training_config(settings))
    with pytest.raises(ConfigError, match=re.escape(why)):
        PreferenceTrainer("no such model", args=SimpleNamespace(), method=DPO())


def test_fsdp1_by_training_arguments_is_refused_and_fsdp2_is_not() -> None:
    with pytest.raises(ConfigError, match="FSDP1 is not supported"):
        check_parallelism(SimpleNamespace(fsdp_plugin_args={"fsdp_version": 1}))
    check_parallelism(SimpleNamespace(fsdp_plugin_args={"fsdp_version": 2}))


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_ready_launch_configs_are_what_accelerate_reads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(HERE.parent / "configs" / "accelerate" / f"{name}.yaml"))
    assert config.distributed_type == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[name]
    assert getattr(config, "fsdp_config", None) is None or config.fsdp_config.get("fsdp_version", 2) == 2


class ManyRanks:
    """Two ranks of which the second has its own view."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, second: object) -> None:
        self.second = second

    def gather(self, hashes: torch.Tensor) -> torch.Tensor:
        theirs = torch.tensor([[hash_of(value) for value in self.second]])  # type: ignore[attr-defined]
        return torch.cat([hashes, theirs])


def test_ranks_that_part_ways_are_named_at_once() -> None:
    same = {"beta": 0.1, "window": [1.0, 2.0]}
    check_ranks_agree(ManyRanks(same.values()), same)
    with pytest.raises(ModelError, match=r"window differs between rank 0 and ranks \[1\]"):
        check_ranks_agree(ManyRanks([0.1, [1.0, 2.5]]), same)


def test_a_transports_complaint_becomes_a_sentence_only_where_there_are_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RuntimeError, match=r"^gloo"), clear_rank_errors():
        raise RuntimeError("gloo: Connection closed by peer")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(DynamicDPOError, match="another rank of this run has ended"), clear_rank_errors():
        raise RuntimeError("gloo: Connection closed by peer")
    with pytest.raises(RuntimeError, match=r"^shapes"), clear_rank_errors():
        raise RuntimeError("shapes do not match")
