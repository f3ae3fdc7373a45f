"""Settings that differ between layers are read from the layers."""

from __future__ import annotations

from dynamic_dpo.engine.token_budget import default_token_budget, layer_widths
from dynamic_dpo.models.settings import layer_values
from families.configurations import tiny_config, tiny_model
from tiny import tiny_llama


def test_one_value_for_all_layers_and_one_for_each() -> None:
    assert layer_values(tiny_llama().config, "hidden_size") == [32]
    assert layer_values(tiny_llama().config, "sliding_window") == []
    # Two kinds of layers: windows with heads of 8, and full attention with heads of 16.
    assert set(layer_values(tiny_config("gemma4_text"), "head_dim")) == {8, 16}


def test_the_token_budget_reads_such_models_too() -> None:
    model = tiny_model("gemma4_text")
    assert layer_widths(model.config).hidden == 4 * 16
    assert default_token_budget(model) == 768
