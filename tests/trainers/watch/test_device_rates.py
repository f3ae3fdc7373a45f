"""A device's rate is measured once and kept under its name; broken or forbidden caches stop nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dynamic_dpo.trainers.watch import device_rates
from dynamic_dpo.trainers.watch.device_rates import NOMINAL, device_name, matmul_limit, nominal_flops

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYNAMIC_DPO_CACHE", str(tmp_path))
    return tmp_path / "devices" / "matmul_limits.json"


def test_a_limit_is_measured_once_and_kept_with_the_devices_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = matmul_limit(CPU, torch.float32)
    assert limit is not None
    assert 1e8 < limit < 1e14
    ((key, kept),) = json.loads(cache.read_text()).items()
    assert key == f"{device_name(CPU)}, float32, torch {torch.__version__}"
    assert kept == limit
    cache.write_text(json.dumps({key: 123.0, "another device": 5.0}))

    def fails(*args: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(device_rates, "_measured", fails)
    assert matmul_limit(CPU, torch.float32) == 123.0


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"x": "fast"}', "\ud800".encode("utf-8", "surrogatepass").hex()]
)
def test_a_broken_cache_is_measured_anew(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    limit = matmul_limit(CPU, torch.float32)
    assert limit in json.loads(cache.read_text()).values()


def test_a_cache_that_cannot_be_written_stops_nothing(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    limit = matmul_limit(CPU, torch.float32)
    assert limit is not None
    assert limit == matmul_limit(CPU, torch.float32)


def test_measuring_draws_no_random_number_of_the_run(cache: Path) -> None:
    device_rates._measured.cache_clear()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    matmul_limit(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_devices_that_are_not_measured_have_no_limit(cache: Path) -> None:
    assert matmul_limit(torch.device("meta"), torch.float32) is None
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "arithmetic", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA H200", "float32+tf32", 494.7e12),
        ("NVIDIA A100-SXM4-80GB", "float16", 312e12),
        ("NVIDIA L40S", "float32", 91.6e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("Tesla V100-PCIE-16GB", "float16", 112e12),
        ("Tesla V100-SXM2-16GB", "float32+tf32", None),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2e12),
        ("NVIDIA RTX A4000", "bfloat16", None),
        ("NVIDIA GH200 480GB", "bfloat16", None),
        ("AMD EPYC 9B14, 2 threads", "float32", None),
    ],
)
def test_the_makers_rate_is_found_by_the_devices_name(name: str, arithmetic: str, rate: float | None) -> None:
    assert nominal_flops(name, arithmetic) == rate


def test_no_rate_is_hidden_by_a_more_general_name() -> None:
    for key, rates in NOMINAL.items():
        assert nominal_flops(f"NVIDIA {key}", "float16") == rates.half * 1e12
