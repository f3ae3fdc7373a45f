"""The engine ``server`` against a real server with a small language model on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamic_dpo.eval.generate.server_settings import ServerSettings
from dynamic_dpo.eval.generate.settings import GenerationSettings
from dynamic_dpo.eval.generate.stage import read_outputs, write_outputs
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.records import PromptRecord
from helpers_served import Served, served_model

pytestmark = pytest.mark.slow

PROMPTS = [
    PromptRecord.of([{"role": "user", "content": text}])
    for text in ("Say hello.", "What is 2 + 2?", "Name a colour.", "Name a fruit.")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_model(tmp_path_factory.mktemp("model")) as served:
        yield served


@pytest.mark.parametrize("mode", ["chat", "completions"])
def test_a_real_server_writes_every_output_and_says_why_each_ended(
    server: Served, tmp_path: Path, mode: str
) -> None:
    how = GenerationSettings(
        max_new_tokens=12,
        temperature=0.9,
        num_samples=2,
        engine="server",
        server=ServerSettings(server.base_url, mode=mode, concurrency=2, max_retries=2),  # type: ignore[arg-type]
    )
    spec = ModelSpec("small", server.model)
    fingerprint = write_outputs(PROMPTS, spec, how, tmp_path / "out", progress=False).fingerprint
    found = read_outputs(tmp_path / "out", PROMPTS, spec, fingerprint, 2)
    assert [(output.id, output.sample) for output in found.outputs] == [
        (prompt.id, sample) for prompt in PROMPTS for sample in range(2)
    ]
    assert {output.finish_reason for output in found.outputs} <= {"stop", "length"}
    assert all(output.num_tokens == 12 for output in found.outputs if output.finish_reason == "length")
    assert len({output.text for output in found.outputs}) > 4
    before = (tmp_path / "out").read_bytes()
    write_outputs(PROMPTS, spec, how, tmp_path / "out", progress=False)
    assert (tmp_path / "out").read_bytes() == before
