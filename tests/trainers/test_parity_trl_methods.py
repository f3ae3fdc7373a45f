"""Ten steps of each loss that the installed TRL also has, beside its trainer: losses and weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOTrainer

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.rows import PairBatch
from dynamic_dpo.methods import (
    AOT,
    DPO,
    IPO,
    SFT,
    WPO,
    AOTConfig,
    AOTUnpaired,
    AOTUnpairedConfig,
    APODown,
    APODownConfig,
    APOZero,
    APOZeroConfig,
    BCOPair,
    BCOPairConfig,
    DiscoPOP,
    DiscoPOPConfig,
    DPOMethodConfig,
    DPONorm,
    DPONormConfig,
    EXOPair,
    EXOPairConfig,
    Hinge,
    HingeConfig,
    IPOConfig,
    NCAPair,
    NCAPairConfig,
    PreferenceMethod,
    Robust,
    RobustConfig,
    SPPOHard,
    SPPOHardConfig,
    WPOConfig,
)
from dynamic_dpo.methods.objective import Adjusted, ObjectiveConfig
from dynamic_dpo.trainers import PreferenceTrainer
from helpers_trl import BETA, STEPS, arguments, policy, recording, text_of
from tiny import random_pairs, word_tokenizer

# The installed TRL still asks transformers for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# What TRL is told, and the method that is to do the same.
LOSSES: dict[str, tuple[dict[str, Any], PreferenceMethod]] = {
    "dpo": ({"loss_type": "sigmoid"}, DPO(DPOMethodConfig(beta=BETA))),
    # TRL 1.16 smooths no labels in its "sigmoid" loss. Its "aot" loss does, on margins that are sorted within the
    # batch: with one pair a batch that is conservative DPO.
    "label smoothing": (
        {"loss_type": "aot", "label_smoothing": 0.1, "per_device_train_batch_size": 1},
        DPO(DPOMethodConfig(beta=BETA, label_smoothing=0.1)),
    ),
    "robust": (
        {"loss_type": "robust", "label_smoothing": 0.2},
        Robust(RobustConfig(beta=BETA, epsilon=0.2)),
    ),
    "ipo": ({"loss_type": "ipo"}, IPO(IPOConfig(beta=BETA))),
    "hinge": ({"loss_type": "hinge"}, Hinge(HingeConfig(beta=BETA))),
    # TRL's label smoothing is the share of wrong labels here.
    "exo_pair": (
        {"loss_type": "exo_pair", "label_smoothing": 0.05},
        EXOPair(EXOPairConfig(beta=BETA, epsilon=0.05)),
    ),
    "nca_pair": ({"loss_type": "nca_pair"}, NCAPair(NCAPairConfig(beta=BETA))),
    "bco_pair": ({"loss_type": "bco_pair"}, BCOPair(BCOPairConfig(beta=BETA))),
    "sppo_hard": ({"loss_type": "sppo_hard"}, SPPOHard(SPPOHardConfig(beta=BETA))),
    "apo_zero": ({"loss_type": "apo_zero"}, APOZero(APOZeroConfig(beta=BETA))),
    "apo_down": ({"loss_type": "apo_down"}, APODown(APODownConfig(beta=BETA))),
    "discopop": (
        {"loss_type": "discopop", "discopop_tau": 0.2},
        DiscoPOP(DiscoPOPConfig(beta=BETA, tau=0.2)),
    ),
    "dpo_norm": ({"loss_type": "sigmoid_norm"}, DPONorm(DPONormConfig(beta=BETA))),
    "aot": ({"loss_type": "aot"}, AOT(AOTConfig(beta=BETA))),
    "aot, smoothed": (
        {"loss_type": "aot", "label_smoothing": 0.1},
        AOT(AOTConfig(beta=BETA, label_smoothing=0.1)),
    ),
    "aot_unpaired": (
        {"loss_type": "aot_unpaired", "label_smoothing": 0.05},
        AOTUnpaired(AOTUnpairedConfig(beta=BETA, label_smoothing=0.05)),
    ),
    "aot, ld_alpha": (
        {"loss_type": "aot", "ld_alpha": 0.5, "learning_rate": 1e-3},
        Adjusted(AOT(AOTConfig(beta=BETA)), ObjectiveConfig(ld_alpha=0.5)),
    ),
    "sft": ({"loss_type": "sft"}, SFT()),
    **{
        f"{divergence}, {loss_type}": (
            {
                "loss_type": loss_type,
                "f_divergence_type": divergence,
                "f_alpha_divergence_coef": 0.3,
                # Its scores grow exponentially: rounding does too where steps are large.
                "learning_rate": 5e-4 if divergence == "forward_kl" else 2e-3,
            },
            Adjusted(
                method,
                ObjectiveConfig(
                    f_divergence=divergence,  # type: ignore[arg-type]
                    f_alpha=0.3 if divergence == "alpha_divergence" else 0.5,
                ),
            ),
        )
        for divergence, loss_type, method in (
            ("forward_kl", "sigmoid", DPO(DPOMethodConfig(beta=BETA))),
            ("js_divergence", "ipo", IPO(IPOConfig(beta=BETA))),
            ("alpha_divergence", "hinge", Hinge(HingeConfig(beta=BETA))),
            ("alpha_divergence", "sigmoid_norm", DPONorm(DPONormConfig(beta=BETA))),
        )
    },
    **{
        f"ld_alpha {weight}, {loss_type}": (
            {"loss_type": loss_type, "ld_alpha": weight, "learning_rate": 1e-3},
            Adjusted(method, ObjectiveConfig(ld_alpha=weight)),
        )
        for weight, loss_type, method in (
            (0.3, "sigmoid", DPO(DPOMethodConfig(beta=BETA))),
            (0.0, "apo_zero", APOZero(APOZeroConfig(beta=BETA))),
            (0.5, "ipo", IPO(IPOConfig(beta=BETA))),
        )
    },
    "use_weighting, ipo": (
        {"loss_type": "ipo", "use_weighting": True},
        Adjusted(IPO(IPOConfig(beta=BETA)), ObjectiveConfig(use_weighting=True)),
    ),
    "all at once": (
        {
            "loss_type": "sigmoid",
            "use_weighting": True,
            "ld_alpha": 0.4,
            "f_divergence_type": "js_divergence",
        },
        Adjusted(
            DPO(DPOMethodConfig(beta=BETA)),
            ObjectiveConfig(use_weighting=True, ld_alpha=0.4, f_divergence="js_divergence"),
        ),
    ),
    "wpo": ({"loss_type": "sigmoid", "use_weighting": True}, WPO(WPOConfig(beta=BETA))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_ten_steps_are_trls(tmp_path: Path, name: str) -> None:
    asked, method = LOSSES[name]
    rows = random_pairs(48, seed=3)
    theirs: list[float] = []
    ours: list[float] = []
    reference = policy()
    trl = recording(DPOTrainer, theirs)(
        model=policy(),
        ref_model=copy.deepcopy(reference),
        args=arguments(tmp_path / "trl", **asked),
        train_dataset=text_of(rows),
        processing_class=word_tokenizer(),
    )
    trl.train()
    trainer = recording(PreferenceTrainer, ours)(
        model=policy(),
        args=arguments(
            tmp_path / "ours",
            per_device_train_batch_size=trl.args.per_device_train_batch_size,
            learning_rate=trl.args.learning_rate,
        ),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        method=method,
        # Small chunks of the head, so that a batch takes several.
        engine=EngineConfig(reference_dir=str(tmp_path / "reference"), head_chunk=7),
    )
    trainer.train()

    assert len(ours) == STEPS
    # WPO's weights make losses of 1e-4: the absolute bound must not be wider than they are.
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5 * max(map(abs, theirs)))
    assert max(ours) - min(ours) > 0.1 * max(map(abs, ours))  # the policy moved
    pairs = PairBatch(rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], range(48))
    with torch.no_grad():
        mine = trainer.policy.scorer.score(trainer.model, pairs)
        other = trainer.policy.scorer.score(_with_weights(trainer.model, trl.model.state_dict()), pairs)
    torch.testing.assert_close(mine.chosen, other.chosen, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mine.rejected, other.rejected, rtol=1e-5, atol=1e-4)


def _with_weights(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin
