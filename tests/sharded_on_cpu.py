"""Runs a script or a module with FSDP2 on CPU processes: ``sharded_on_cpu.py SCRIPT.py|-m MODULE ARGUMENTS...``.

accelerate leaves FSDP aside where its distributed type is MULTI_CPU. What it shards works on CPUs all the same, by
gloo; so the type reads MULTI_GPU when its state decides, as on a machine with GPUs. Nothing else is changed.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow_sharding_on_cpu() -> None:
    """Let accelerate shard on CPU processes; the environment decides whether it does (``ACCELERATE_USE_FSDP``)."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        if not PartialState._shared_state:
            PartialState(True)
        if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = init


def main() -> None:
    """Run what the command line names."""
    allow_sharding_on_cpu()
    arguments = sys.argv[1:]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
