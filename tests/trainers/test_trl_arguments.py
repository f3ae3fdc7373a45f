"""What a `trl.DPOConfig` says of the loss: ten steps beside TRL's trainer, and what is refused or warned of."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.errors import ConfigError
from dynamic_dpo.methods import DPO, SFT, Risk
from dynamic_dpo.methods.objective import Adjusted
from dynamic_dpo.methods.objective.trl_names import LOSSES, loss_of
from dynamic_dpo.trainers import RiskBetaDPOConfig, RiskBetaDPOTrainer
from helpers_trl import BETA, STEPS, arguments, policy, recording, text_of
from tiny import random_pairs, tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SMOOTHED = {name: {"label_smoothing": 0.1} for name, loss in LOSSES.items() if loss.smoothing}
# Its slope changes within a twentieth of a reward margin, and rounding grows with it.
SMOOTHED["discopop"] = {"learning_rate": 5e-4}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name, **SMOOTHED.get(name, {})} for name in LOSSES},
    "aot, not smoothed": {"loss_type": "aot"},
    "RPO": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "MPO": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "likelihood first": {"loss_type": ["sft", "ipo"]},
    "one of each kind": {
        "loss_type": ["sigmoid", "aot", "exo_pair", "sft", "robust"],
        "loss_weights": [0.5, 0.3, 0.2, 0.1, 0.4],
        "label_smoothing": 0.1,
        "learning_rate": 1e-3,
    },
    "twice, and one of weight 0": {"loss_type": ["hinge", "ipo", "hinge"], "loss_weights": [0.5, 0.0, 0.25]},
    "one loss with a weight": {"loss_type": ["apo_zero"], "loss_weights": [3.0]},
    "changed sum": {
        "loss_type": ["sigmoid", "ipo"],
        "loss_weights": [1.0, 0.1],
        "f_divergence_type": "js_divergence",
        "use_weighting": True,
        "ld_alpha": 0.5,
    },
    "alpha divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
    "discopop, tau": {"loss_type": "discopop", "discopop_tau": 0.2},
}


def make(args: Any, folder: Path, **settings: Any) -> RiskBetaDPOTrainer:
    return RiskBetaDPOTrainer(
        model=settings.pop("model", None) or tiny_llama(seed=1),
        args=args,
        train_dataset=random_pairs(48, seed=3),
        processing_class=word_tokenizer(),
        engine=EngineConfig(reference_dir=str(folder / "reference")),
        **settings,
    )


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_with_the_same_arguments_are_trls(tmp_path: Path, name: str) -> None:
    theirs: list[float] = []
    ours: list[float] = []
    rows = random_pairs(48, seed=3)
    trl = recording(DPOTrainer, theirs)(
        model=policy(),
        ref_model=copy.deepcopy(policy()),
        args=arguments(tmp_path / "trl", **CASES[name]),
        train_dataset=text_of(rows),
        processing_class=word_tokenizer(),
    )
    trl.train()
    # A controller that does not move: beta stays where the arguments put it.
    still = RiskBetaDPOConfig(beta_0=BETA, alpha=0.0, warmup_steps=1, log_margins=False)
    trainer = recording(RiskBetaDPOTrainer, ours)(
        model=policy(),
        args=arguments(tmp_path / "ours", **CASES[name]),
        train_dataset=rows,
        processing_class=word_tokenizer(),
        engine=EngineConfig(reference_dir=str(tmp_path / "reference"), head_chunk=7),
        dynamic_cfg=None if name == "sft" else still,
    )
    trainer.train()
    assert len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5 * max(map(abs, theirs)))
    assert max(ours) - min(ours) > 0.02 * max(map(abs, ours))


def test_every_loss_of_the_installed_trl_is_known() -> None:
    text = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    for name in LOSSES:
        assert f"'{name}'" in text
    assert text.count("`'") == len(LOSSES)


def test_beta_of_the_arguments_is_where_the_controller_starts(tmp_path: Path) -> None:
    trainer = make(arguments(tmp_path / "a"), tmp_path)
    assert isinstance(trainer.method, Risk)
    assert (trainer.method.beta, trainer.dynamic_cfg.beta_max) == (BETA, 2.0)
    far = make(arguments(tmp_path / "b", loss_type="sigmoid_norm", beta=5.0), tmp_path)
    assert (far.method.beta, far.dynamic_cfg.beta_max) == (5.0, 100.0)
    plain = TrainingArguments(output_dir=str(tmp_path / "c"), use_cpu=True, report_to="none")
    assert make(plain, tmp_path).method.beta == 0.1


def test_a_beta_without_a_say_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(arguments(tmp_path / "a"), tmp_path, dynamic_cfg=RiskBetaDPOConfig(beta_0=0.2))
    assert trainer.method.beta == 0.2
    assert (
        "training argument beta=0.3 has no say: the controller starts from dynamic_cfg.beta_0=0.2"
        in caplog.text
    )
    caplog.clear()
    make(arguments(tmp_path / "b", beta=0.1), tmp_path, dynamic_cfg=RiskBetaDPOConfig(beta_0=0.2))
    make(arguments(tmp_path / "c"), tmp_path, dynamic_cfg=RiskBetaDPOConfig(beta_0=BETA))
    assert "has no say" not in caplog.text


def test_the_controller_moves_the_beta_of_a_sum(tmp_path: Path) -> None:
    args = arguments(tmp_path / "run", loss_type=["ipo", "sft"], loss_weights=[1.0, 0.1])
    quick = RiskBetaDPOConfig(beta_0=0.1, warmup_steps=2, alpha=0.3, delta=0.25)
    trainer = make(args, tmp_path, dynamic_cfg=quick)
    trainer.train()
    assert trainer.method.beta != 0.1
    assert trainer.method.summary()["loss"] == {"name": "ipo", "objective": {"added": {"sft": 0.1}}}


def test_the_likelihood_alone_is_trained_without_a_controller(tmp_path: Path) -> None:
    trainer = make(arguments(tmp_path / "a", loss_type="sft"), tmp_path)
    assert isinstance(trainer.method, SFT)
    assert trainer.method.beta == BETA
    with pytest.raises(ConfigError, match=r"dynamic_cfg steers a beta, and loss_type=\['sft'\] has none"):
        make(arguments(tmp_path / "b", loss_type="sft"), tmp_path, dynamic_cfg=RiskBetaDPOConfig())


def loss(**settings: Any) -> Any:
    return loss_of(SimpleNamespace(**settings), beta=BETA)


def test_smoothing_goes_to_the_losses_that_read_it_in_trl_else_to_the_logistic_one() -> None:
    assert loss(loss_type="sigmoid", label_smoothing=0.1).config.label_smoothing == 0.1
    both = loss(loss_type=["sigmoid", "robust"], label_smoothing=0.1)
    assert isinstance(both, Adjusted)
    assert isinstance(both.loss, DPO)
    assert both.loss.config.label_smoothing == 0.0
    assert both.added[0].config.epsilon == 0.1  # type: ignore[attr-defined]
    assert loss().config == DPO().config.__class__(beta=BETA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "kto_pair"}, r"loss_type='kto_pair': 'kto_pair' is none of sigmoid, hinge"),
        (
            {"loss_type": "hinge", "label_smoothing": 0.1},
            r"label_smoothing=0\.1: it has no effect on loss_type",
        ),
        ({"loss_type": "exo_pair"}, r"label_smoothing=0\.0: exo_pair needs a share of wrong labels above 0"),
        ({"loss_type": "robust", "label_smoothing": 0.6}, r"epsilon must lie in \[0, 0\.5\), got 0\.6"),
        ({"loss_weights": [1.0, 2.0]}, r"loss_weights=\[1\.0, 2\.0\]: expected 1 finite numbers"),
        ({"loss_weights": [-1.0]}, r"loss_weights=\[-1\.0\]: expected 1 finite numbers that are 0 or more"),
        ({"loss_weights": [0.0]}, "all are 0, so that nothing would be trained"),
        ({"discopop_tau": 0.5}, r"discopop_tau=0\.5: it has no effect on loss_type=\['sigmoid'\]"),
        (
            {"loss_type": "bco_pair", "f_divergence_type": "forward_kl"},
            r"f_divergence_type='forward_kl': f_divergence forward_kl does not go with bco_pair",
        ),
        (
            {"loss_type": ["sigmoid", "aot"], "f_divergence_type": "forward_kl"},
            r"f_divergence_type='forward_kl': f_divergence forward_kl does not go with aot",
        ),
        ({"f_alpha_divergence_coef": 0.3}, r"f_alpha_divergence_coef=0\.3: f_alpha has no effect"),
        (
            {"loss_type": "aot", "use_weighting": True},
            "use_weighting=True: use_weighting does not go with aot",
        ),
        ({"ld_alpha": 2.0}, r"ld_alpha=2\.0: ld_alpha must lie in \[0, 1\]"),
    ],
)
def test_what_would_be_lost_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(**settings)
