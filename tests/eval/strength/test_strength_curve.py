"""Models between a reference and its policy: exact at both ends, one pass a strength, and the numbers by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.eval.scoring.pairs import score_pairs
from dynamic_dpo.eval.strength.between import BetweenScales, BetweenWeights, between, open_between
from dynamic_dpo.eval.strength.curve import (
    StrengthPoint,
    as_record,
    best_point,
    calibration_error,
    from_record,
    strength_curve,
    token_kl,
)
from dynamic_dpo.eval.strength.page import NOT, strength_page
from dynamic_dpo.models.adapters import find_model, open_model
from overfitting import lawful_pairs
from tiny import tiny_llama, tiny_qwen2, word_tokenizer

GRID = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0]
ROWS = lawful_pairs(24, seed=1)
PAIRS = PairBatch(ROWS["prompt_ids"], ROWS["chosen_ids"], ROWS["rejected_ids"], list(ROWS["row"]))


def moved(model: Any, *, by: float = 0.02, seed: int = 5) -> Any:
    """Return a model with noise on everything that is trained, as a training might leave it."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += by * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {
        name: root / name for name in ("reference", "full", "lora", "biased", "other", "tied", "tied_full")
    }
    for name, model in (
        ("reference", tiny_llama()),
        ("full", moved(tiny_llama())),
        ("other", tiny_qwen2()),
        ("tied", tiny_qwen2()),
        ("tied_full", moved(tiny_qwen2())),
    ):
        model.save_pretrained(made[name])
        word_tokenizer().save_pretrained(made[name])
    for name, more in (("lora", {}), ("biased", {"modules_to_save": ["lm_head"]})):
        base = tiny_llama()
        base.config._name_or_path = base.name_or_path = str(made["reference"])
        config = LoraConfig(
            r=4,
            lora_alpha=16,
            target_modules=["q_proj", "up_proj"],
            task_type="CAUSAL_LM",
            base_model_name_or_path=str(made["reference"]),
            **more,
        )
        moved(get_peft_model(base, config), by=0.1).save_pretrained(made[name])
        word_tokenizer().save_pretrained(made[name])
    return made


def opened(folders: dict[str, Path], policy: str, reference: str = "reference") -> Any:
    files = [find_model(str(folders[name])) for name in (policy, reference)]
    return open_between(*files, device="cpu", dtype="float32")[0]


def logps(model: Any) -> torch.Tensor:
    scored = PairScorer(model, EngineConfig()).score(model, PAIRS)
    return torch.stack([scored.chosen, scored.rejected], dim=1).detach()


@pytest.mark.parametrize(
    ("policy", "reference"), [("full", "reference"), ("lora", "reference"), ("tied_full", "tied")]
)
def test_both_ends_are_the_models_themselves_to_the_last_bit(
    folders: dict[str, Path], policy: str, reference: str
) -> None:
    line = opened(folders, policy, reference)
    for strength, name in ((0.0, reference), (1.0, policy), (0.3, None), (0.0, reference), (1.0, policy)):
        line.move_to(strength)
        if name is None:
            continue
        alone, _ = open_model(find_model(str(folders[name])), device="cpu", dtype="float32")
        assert torch.equal(logps(line.model), logps(alone))
        if policy != "lora":
            for (key, weight), (_, same) in zip(
                line.model.named_parameters(), alone.named_parameters(), strict=True
            ):
                assert weight.dtype == torch.float32
                assert torch.equal(weight.view(torch.int32), same.view(torch.int32)), key


def test_ends_keep_the_signs_of_zeros_and_what_is_no_number() -> None:
    one, other = torch.tensor([-0.0, math.inf, 1.0]), torch.tensor([2.0, 1.0, math.nan])
    assert between(one, other, 0.0) is one
    assert between(one, other, 1.0) is other
    assert between(torch.tensor([1.0]), torch.tensor([3.0]), 2.0).tolist() == [5.0]
    assert between(torch.tensor([1.0]), torch.tensor([3.0]), 0.25).tolist() == [1.5]


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9, 1.5, 2.0])
def test_scaling_an_adapter_is_moving_the_merged_weights(
    folders: dict[str, Path], strength: float, tmp_path: Path
) -> None:
    files = [find_model(str(folders[name])) for name in ("lora", "reference")]
    # In float64, in which rounding hides nothing.
    scaled, _ = open_between(*files, device="cpu", dtype="float64")
    assert isinstance(scaled, BetweenScales)
    merged, _ = open_model(files[0], device="cpu", dtype="float64")
    weights = {name: weight.detach().double() for name, weight in tiny_llama().named_parameters()}
    whole = BetweenWeights(merged.merge_and_unload(), weights)
    scaled.move_to(strength)
    whole.move_to(strength)
    for ours, theirs in zip(PAIRS.chosen, PAIRS.prompts, strict=True):
        ids = torch.tensor([[*theirs, *ours]])
        with torch.no_grad():
            difference = scaled.model(ids).logits.log_softmax(-1) - whole.model(ids).logits.log_softmax(-1)
        assert difference.abs().max() <= 1e-6
    expected = {name: weight.clone() for name, weight in whole.model.named_parameters()}
    scaled.settle(strength)
    scaled.model.save_pretrained(tmp_path / "adapter")
    again, _ = open_model(find_model(str(tmp_path / "adapter")), device="cpu", dtype="float64")
    for name, weight in again.merge_and_unload().named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)


def test_other_adapters_are_merged_and_other_architectures_refused(folders: dict[str, Path]) -> None:
    line = opened(folders, "biased")
    assert isinstance(line, BetweenWeights)
    line.move_to(0.0)
    assert torch.equal(logps(line.model), logps(tiny_llama().eval()))
    # Of an adapter that was trained on from an adapter.
    assert isinstance(opened(folders, "lora", "lora"), BetweenWeights)
    with pytest.raises(ModelError, match=r"not of one architecture: .* Nothing lies between them"):
        opened(folders, "full", "other")


class Counting:
    """Counts how often each pair is scored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs = 0
        score = PairScorer.score

        def counted(scorer: PairScorer, model: Any, pairs: PairBatch, **options: Any) -> Any:
            self.pairs += len(pairs)
            return score(scorer, model, pairs, **options)

        monkeypatch.setattr(PairScorer, "score", counted)


@pytest.mark.parametrize("policy", ["full", "lora"])
@pytest.mark.parametrize(("grid", "passes"), [(GRID, 10), (GRID[1:], 10), ([1.0], 2), ([0.0], 1)])
def test_a_strength_costs_one_pass_over_the_pairs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, policy: str, grid: list[float], passes: int
) -> None:
    counting, seen = Counting(monkeypatch), []
    points = strength_curve(
        opened(folders, policy),
        PAIRS,
        [*grid, *grid],
        beta=0.5,
        engine=EngineConfig(tokens_per_microbatch=60),
        progress=seen.append,
    )
    assert [point.strength for point in points] == grid
    assert counting.pairs == sum(seen) == passes * len(PAIRS) < 12 * len(PAIRS)


@pytest.mark.parametrize("policy", ["full", "lora"])
def test_the_curve_is_what_the_models_alone_would_have_given(folders: dict[str, Path], policy: str) -> None:
    points = strength_curve(opened(folders, policy), PAIRS, [0.0, 1.0], beta=0.5)
    start, end = points
    assert (start.loss, start.accuracy, start.kl, start.mean_margin) == (
        pytest.approx(math.log(2), abs=1e-12),
        0.5,
        0.0,
        0.0,
    )
    rows = [
        {"prompt_ids": p, "chosen_ids": c, "rejected_ids": r}
        for p, c, r in zip(PAIRS.prompts, PAIRS.chosen, PAIRS.rejected, strict=True)
    ]
    alone = score_pairs(
        str(folders[policy]), str(folders["reference"]), rows, beta=0.5, device="cpu", progress=False
    )
    margins = np.array(alone.margins)
    assert end.mean_margin == pytest.approx(margins.mean(), abs=2e-5)
    assert end.loss == pytest.approx(np.logaddexp(0, -0.5 * margins).mean(), abs=1e-5)
    assert end.accuracy == (margins > 0).mean()
    assert end.loss_error == pytest.approx(
        np.logaddexp(0, -0.5 * margins).std(ddof=1) / len(margins) ** 0.5, rel=1e-4
    )
    assert end.calibration_error == pytest.approx(calibration_error(margins, beta=0.5), abs=1e-4)
    gained = [(p.chosen_logps - p.ref_chosen_logps) / p.chosen_tokens for p in alone.pairs]
    assert end.chosen_change == pytest.approx(np.mean(gained), abs=1e-5)
    assert end.kl > 0


def test_what_is_known_is_not_scored_again(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    line = opened(folders, "full")
    found: list[StrengthPoint] = []
    whole = strength_curve(line, PAIRS, [0.0, 0.5, 1.0], beta=0.5, on_point=found.append)
    assert found == whole
    counting = Counting(monkeypatch)
    known = {point.strength: from_record(as_record(point)) for point in whole}
    assert strength_curve(line, PAIRS, [0.5, 1.0], beta=0.5, known=known) == whole[1:]
    assert counting.pairs == 0
    del known[1.0]
    assert strength_curve(line, PAIRS, [0.5, 1.0], beta=0.5, known=known) == whole[1:]
    assert counting.pairs == 2 * len(PAIRS)


@pytest.mark.parametrize("grid", [[], [-0.1], [math.nan], [math.inf]])
def test_strengths_are_numbers(folders: dict[str, Path], grid: list[float]) -> None:
    with pytest.raises(ConfigError, match="strengths must be finite and at least 0"):
        strength_curve(opened(folders, "full"), PAIRS, grid, beta=0.5)


def test_calibration_by_hand() -> None:
    # Two pairs at confidence .731 of which one is right, two at .953 of which both are.
    margins = [1.0, -1.0, 3.0, 3.0]
    low, high = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert calibration_error(margins, beta=1.0) == pytest.approx((2 * abs(0.5 - low) + 2 * (1 - high)) / 4)
    # Rewards of the right size are calibrated: labels are drawn by them.
    draw = np.random.default_rng(0)
    rewards = draw.normal(0, 2, 200_000)
    rewards *= np.where(draw.random(len(rewards)) < 1 / (1 + np.exp(-rewards)), 1, -1)
    assert calibration_error(rewards, beta=1.0) < 0.005
    assert calibration_error(rewards, beta=4.0) > 0.1


def test_the_divergence_is_right_on_samples_of_the_reference() -> None:
    draw = np.random.default_rng(0)
    reference, model = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    tokens = draw.choice(3, size=400_000, p=reference)
    exact = float((reference * np.log(reference / model)).sum())
    assert token_kl(np.log(model[tokens]), np.log(reference[tokens])) == pytest.approx(exact, rel=0.02)
    assert token_kl([-1.0, -2.0], [-1.0, -2.0]) == 0.0


def point(strength: float, loss: float, accuracy: float = 0.5, calibration: float = 0.1) -> StrengthPoint:
    return StrengthPoint(strength, loss, 0.01, accuracy, calibration, 0.1, 1.0, 0.0)


def test_the_best_point_is_the_first_of_equals_and_never_one_without_a_number() -> None:
    points = [point(0.0, 0.69), point(0.5, 0.6, 0.7), point(1.0, 0.6, 0.8, 0.2), point(2.0, math.nan)]
    assert best_point(points, "loss").strength == 0.5
    assert best_point(points, "accuracy").strength == 1.0
    assert best_point(points, "calibration_error").strength == 0.0
    with pytest.raises(ConfigError, match="no strength has a finite loss"):
        best_point(points[-1:], "loss")
    assert math.isnan(from_record(as_record(points[-1])).loss)


def test_the_page_shows_the_curve_and_what_it_is_not() -> None:
    points = [point(0.0, 0.69), point(0.5, 0.61234, 0.7), point(1.0, 0.65, 0.8)]
    text = strength_page(
        points, points[1], name="<b>run", beta=0.1, num_pairs=1234, choose="loss", details={"a": {"b": "c"}}
    )
    assert "0.6123" in text
    assert "0.5 (chosen)" in text
    assert "1,234 held-out pairs" in text
    assert "<b>run" not in text
    for sentence in NOT:
        assert sentence.split(";")[0].split("(")[0][:60].replace("'", "&#39;") in text
    same = [point(0.0, math.log(2))]
    assert "the reference" in strength_page(
        same, same[0], name="r", beta=0.1, num_pairs=1, choose="loss", details={}
    )
