"""How fast a device multiplies matrices: measured once and kept, and what its maker says.

The measured limit is the rate of products of square matrices alone, the best of several; a training reaches it
nowhere, since attention, elementwise work, small matrices and the optimizer cost time too. It is kept with the
device's name, so that the shares of different runs have one measure. Makers state dense rates: those for sparse
matrices are twice as high.
"""

from __future__ import annotations

import json
import platform
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import torch

from dynamic_dpo.utils.files import cache_folder, write_json

LIMITS_FILE: Final = "matmul_limits.json"
# Sides of the square matrices, and for how long they are multiplied, at least three times.
_SIDE: Final = {"cpu": 1024, "cuda": 8192}
_SECONDS: Final = {"cpu": 0.1, "cuda": 0.3}


class Nominal(NamedTuple):
    """A maker's dense rates in TFLOP/s; ``None`` where a device has none.

    Attributes:
        half: bfloat16, accumulated in float32; float16 where that is the only one of the two.
        tf32: float32 rounded to TF32.
        full: float32.
        has_bfloat16: Whether ``half`` holds for bfloat16.
    """

    half: float
    tf32: float | None
    full: float
    has_bfloat16: bool = True


# Words of the name that torch gives a device, the more special ones first. Rates for sparse matrices are halved.
# From NVIDIA's "H100 Tensor Core GPU Architecture" and "A100 Tensor Core GPU Architecture" (white papers), the data
# sheets of HGX B200, H200, H100 NVL, A10, A30, A40, L4, L40, L40S, T4 and V100, the white papers "Ada GPU
# Architecture" (RTX 4090 and 3090, float32 accumulation) and "RTX Blackwell GPU Architecture"; AMD's "CDNA 3" white
# paper.
NOMINAL: Final[dict[str, Nominal]] = {
    "B200": Nominal(2250.0, 1125.0, 75.0),
    "H200 NVL": Nominal(835.5, 417.5, 60.0),
    "H200": Nominal(989.4, 494.7, 66.9),
    "H100 NVL": Nominal(835.5, 417.5, 60.0),
    "H100 PCIe": Nominal(756.0, 378.0, 51.2),
    "H100": Nominal(989.4, 494.7, 66.9),
    "A100": Nominal(312.0, 156.0, 19.5),
    "A10": Nominal(125.0, 62.5, 31.2),
    "A40": Nominal(149.7, 74.8, 37.4),
    "A30": Nominal(165.0, 82.0, 10.3),
    "L40S": Nominal(362.05, 183.0, 91.6),
    "L40": Nominal(181.05, 90.5, 90.5),
    "L4": Nominal(121.0, 60.0, 30.3),
    "V100-PCIE": Nominal(112.0, None, 14.0, has_bfloat16=False),
    "V100": Nominal(125.0, None, 15.7, has_bfloat16=False),
    "T4": Nominal(65.0, None, 8.1, has_bfloat16=False),
    "RTX 5090": Nominal(209.5, 104.8, 104.8),
    "RTX 4090": Nominal(165.2, 82.6, 82.6),
    "RTX 3090": Nominal(71.0, 35.6, 35.6),
    "MI300X": Nominal(1307.4, 653.7, 163.4),
    "MI325X": Nominal(1307.4, 653.7, 163.4),
}


def device_name(device: torch.device) -> str:
    """Return a device's name, of a CPU with the number of threads that compute."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def nominal_flops(name: str, arithmetic: str) -> float | None:
    """Return the operations a second that a device's maker states, ``None`` where they are not in the table.

    Args:
        name: From `device_name`.
        arithmetic: From `arithmetic_name`.

    Example:
        >>> nominal_flops("NVIDIA A100-SXM4-80GB", "bfloat16"), nominal_flops("NVIDIA L4", "float32+tf32")
        (312000000000000.0, 60000000000000.0)
        >>> nominal_flops("Tesla T4", "bfloat16") is None, nominal_flops("AMD EPYC, 2 threads", "float32") is None
        (True, True)
    """
    words = f" {name.replace('-', ' ')} "
    found = next((rates for key, rates in NOMINAL.items() if _names(key, words)), None)
    if found is None:
        return None
    rates = {
        "bfloat16": found.half if found.has_bfloat16 else None,
        "float16": found.half,
        "float32+tf32": found.tf32,
        "float32": found.full,
    }
    rate = rates.get(arithmetic)
    return None if rate is None else rate * 1e12


def _names(key: str, words: str) -> bool:
    return f" {key.replace('-', ' ')} " in words


def arithmetic_name(dtype: torch.dtype) -> str:
    """Return the name of the arithmetic in which matrices of a dtype are multiplied here."""
    name = str(dtype).removeprefix("torch.")
    takes_tf32 = dtype == torch.float32 and torch.cuda.is_available() and _uses_tf32()
    return f"{name}+tf32" if takes_tf32 else name


def _uses_tf32() -> bool:
    is_named = getattr(torch.backends.cuda.matmul, "fp32_precision", "none") == "tf32"
    return is_named or torch.get_float32_matmul_precision() != "highest"


def matmul_limit(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations a second of bare matrix products on a CPU or a CUDA device; ``None`` for others.

    It is measured if it has not been yet, in less than a second.

    It is kept in ``devices/matmul_limits.json`` of the user's cache under the device's name, the arithmetic and
    torch's version; where that cannot be written, for as long as the process lives. No random number of the run is
    drawn.

    Args:
        device: The device.
        dtype: In which products are made.
    """
    if device.type not in _SIDE:
        return None
    key = f"{device_name(device)}, {arithmetic_name(dtype)}, torch {torch.__version__}"
    path = cache_folder("devices") / LIMITS_FILE
    kept = _kept(path)
    if key not in kept:
        # Another process may have added one meanwhile; what is lost is measured again.
        kept = {**kept, key: _measured(device, dtype, key)}
        with suppress(OSError):
            write_json(path, kept)
    return kept[key]


@cache
def _measured(device: torch.device, dtype: torch.dtype, key: str) -> float:
    side, draw = _SIDE[device.type], torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(side, side, generator=draw, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(one)

    def seconds() -> float:
        start = time.perf_counter()
        torch.mm(one, other, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds()  # The first call chooses a kernel.
    times: list[float] = []
    while len(times) < 3 or sum(times) < _SECONDS[device.type]:
        times.append(seconds())
    return 2.0 * side**3 / min(times)


def _kept(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: float(rate) for key, rate in found.items() if isinstance(rate, int | float) and rate > 0}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "CPU"
