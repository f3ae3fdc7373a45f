"""A sample of the families of docs/models.md, tried again: losses and gradients are those of each sequence alone."""

from __future__ import annotations

import pytest

from families.configurations import family_names
from families.family_check import Outcome
from families.family_runs import try_families
from families.family_table import is_wrong, layouts_of, line, page
from places import ROOT

# Windows, sinks, caps, scales, scores without one, latent attention, experts, pictures, no rotary embedding,
# recurrence, convolution.
SAMPLE = [
    "bloom",
    "cohere2",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gemma3",
    "gemma4_unified",
    "gpt2",
    "gpt_oss",
    "granite",
    "lfm2",
    "llama",
    "mamba",
    "minicpm3",
    "mistral",
    "mixtral",
    "nanochat",
    "olmo3",
    "opt",
    "phi3",
    "qwen2_5_vl",
    "qwen3_next",
]
TABLE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return try_families(SAMPLE, workers=1, seconds=120)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_family_trains_in_the_layout_of_the_table_and_as_each_sequence_alone(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[name]
    assert outcome.fault == ""
    assert outcome.layout == layouts_of(TABLE)[name]
    assert outcome.loss_distance <= 1e-5
    assert outcome.gradient_distance <= 1e-5


def test_the_table_has_every_family_and_none_wrong() -> None:
    layouts = layouts_of(TABLE)
    assert list(layouts) == family_names()
    assert len(layouts) >= 70
    assert list(layouts.values()).count("packed") >= 45
    assert "**" not in TABLE


def test_what_is_wrong_stands_out_and_is_counted() -> None:
    good = Outcome("packed", 2e-7, 4e-6)
    wrong = good._replace(gradient_distance=2e-5)
    aborted = Outcome(fault="ValueError: no")
    assert [is_wrong(one) for one in (good, wrong, aborted, Outcome("plain"))] == [False, True, True, True]
    assert line("a", good) == "| `a` | packed | ≤ 1e-6 | ≤ 1e-5 |  |"
    assert "**2.0e-05**" in line("b", wrong)
    written = page({"b": wrong, "a": good, "c": aborted})
    assert "3 families: 2 packed, 0 shared, 0 plain; 2 wrong or aborted." in written
    assert layouts_of(written) == {"a": "packed", "b": "packed", "c": ""}


def test_a_family_that_raises_or_hangs_is_told_of_and_the_others_go_on() -> None:
    outcomes = try_families(["no such family"], workers=2, seconds=60)
    assert "no such family" in outcomes["no such family"].fault
    assert try_families(["llama"], workers=1, seconds=0)["llama"].fault == "no answer within 0 s"
