"""How ranks with FSDP2 load models; usage: ``distributed_loading.py FOLDER LARGE SMALL...``, folders of models.

Each rank leaves how its host memory grew while the large one was loaded, and what it holds of the small ones before
and after they are sharded.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dynamic_dpo.errors import ModelError
from dynamic_dpo.models.sources import load_model, resolve_model
from dynamic_dpo.trainers.checkpoints.saved import gathered_weights
from dynamic_dpo.trainers.sharding import shard
from dynamic_dpo.utils.process_group import end_process, process_group


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def load_measured(path: str) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak so far.
    before = peak_bytes()
    model = load_model(resolve_model(path))
    return {"growth": peak_bytes() - before, "devices": sorted({p.device.type for p in model.parameters()})}


def load_and_shard(path: str) -> dict[str, Any]:
    model = load_model(resolve_model(path))
    result = {
        "devices": sorted({p.device.type for p in model.parameters()}),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "config": model.config.tie_word_embeddings,
        "training": model.training,
        "buffers": {
            name: (value.device.type, value.sum().item())
            for name, value in model.named_buffers()
            if name not in model.state_dict()
        },
    }
    accelerator = Accelerator()
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = None  # The family before is not this one's.
    shard(accelerator, model)
    weights = gathered_weights(model)
    result["saved buffers"] = {
        name: value.tolist() for name, value in model.named_buffers() if name in model.state_dict()
    }
    saved = {name: value.float() for name, value in load_file(Path(path) / "model.safetensors").items()}
    result["equal"] = [name for name in saved if name in weights and torch.equal(weights[name], saved[name])]
    return result


def main(folder: Path, large: str, small: list[str]) -> None:
    load_and_shard(small[0])  # What is imported for the first model is no part of what is measured.
    result: dict[str, Any] = {"large": load_measured(large)}
    result |= {Path(path).name: load_and_shard(path) for path in small}
    broken = folder / "broken"
    if os.environ["RANK"] == "0":
        broken.mkdir()
        (broken / "config.json").write_text('{"model_type": "llama"}')
    torch.distributed.barrier()
    try:
        load_model(resolve_model(str(broken)))
    except ModelError as error:
        result["broken"] = str(error)
    (folder / f"result_{os.environ['RANK']}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    with process_group():
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    end_process(0)
