"""The risk controller beside an unmodified TRL `DPOTrainer`, for those who will not switch trainers.

TRL keeps its loss, loop and data; the callback reads the margins off the rewards that TRL gathers for its logs, hands
them to the controller, and sets ``trainer.beta``. It relies on one method of TRL's trainer and therefore on its minor
release, which is checked.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from dynamic_dpo.errors import CheckpointError, ConfigError, ModelError, NonFiniteError, RunStopped
from dynamic_dpo.methods.risk.config import RiskConfig
from dynamic_dpo.methods.risk.controller import Risk
from dynamic_dpo.methods.settings import MAX_NONFINITE
from dynamic_dpo.models.trained_weights import has_narrow_trained_weights

logger = logging.getLogger("dynamic_dpo")

TRL_MINOR = "1.16"
STATE_KEY = "dynamic_dpo_risk_controller"


class RiskBetaCallback(TrainerCallback):  # type: ignore[misc]
    """Lets the risk controller set the beta of a TRL `DPOTrainer`; `attach` it once the trainer is made.

    Args:
        config: The controller's settings; ``beta_0`` takes the place of ``DPOConfig.beta``.
        max_nonfinite: Margins that may be NaN or infinite in total before the run stops.

    Attributes:
        controller: The controller, from `attach` on.
        num_nonfinite: Margins so far that were not finite.

    Example:
        >>> callback = RiskBetaCallback(RiskConfig(mode="exact"))
        >>> # trainer = callback.attach(DPOTrainer(model=..., args=..., train_dataset=...)); trainer.train()
    """

    def __init__(self, config: RiskConfig | None = None, *, max_nonfinite: int = MAX_NONFINITE) -> None:
        self.config = config or RiskConfig()
        self.max_nonfinite = max_nonfinite
        self.num_nonfinite = 0
        self.controller: Risk | None = None
        self.trainer: Any = None
        self._step_margins: list[Tensor] = []

    def attach(self, trainer: Any) -> Any:
        """Bind the callback to a trainer that has not started.

        Args:
            trainer: A `trl.DPOTrainer`.

        Returns:
            The trainer.

        Raises:
            ConfigError: If it is no such trainer, its TRL is of another minor release, or a controller is bound
                already.
        """
        version = importlib.metadata.version("trl")
        if not version.startswith(f"{TRL_MINOR}."):
            raise ConfigError(
                f"RiskBetaCallback reads margins inside TRL {TRL_MINOR}, and {version} is installed: install "
                f"trl~={TRL_MINOR}.0, or use RiskBetaDPOTrainer, which does not depend on it"
            )
        from trl import DPOTrainer

        if not isinstance(trainer, DPOTrainer):
            raise ConfigError(f"RiskBetaCallback needs a trl.DPOTrainer, got {type(trainer).__name__}")
        if self.trainer is not None:
            raise ConfigError("this RiskBetaCallback is attached already: make one for each trainer")
        if has_narrow_trained_weights(trainer.model):
            logger.warning(
                "weights of 16 bits are trained, which round a learning rate's small steps away: load the policy "
                "with dtype=torch.float32, and set bf16=True to compute in bfloat16"
            )
        args = trainer.args
        device_batch = args.per_device_train_batch_size
        steps = args.gradient_accumulation_steps if self.config.scope == "step" else 1
        self.controller = Risk(
            self.config,
            pairs_per_update=device_batch * steps * args.world_size,
            device_batch=device_batch,
        )
        self.trainer = trainer
        self._compute_loss = trainer.compute_loss
        trainer.compute_loss = self._compute_loss_and_observe
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        trainer.beta = self.controller.beta
        return trainer

    # ---- margins ----

    def _compute_loss_and_observe(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.trainer.model.training:
            return self._compute_loss(model, inputs, *args, **kwargs)
        with recorded_gathers(self.trainer.accelerator) as gathered:
            result = self._compute_loss(model, inputs, *args, **kwargs)
        # The loss is formed with the beta from before; only now may it move.
        margins = reward_margins(gathered) / self.trainer.beta
        if self.config.scope == "step":
            self._step_margins.append(margins)
        else:
            self._observe(margins)
        return result

    def _observe(self, margins: Tensor) -> None:
        controller = self._bound()
        bad = int((~torch.isfinite(margins)).sum())
        self.num_nonfinite += bad
        if bad:
            message = (
                f"{bad} of {len(margins)} margins are NaN or infinite; they do not reach the controller "
                f"({self.num_nonfinite} so far)"
            )
            logger.warning(message)
            if self.num_nonfinite > self.max_nonfinite:
                raise NonFiniteError(
                    f"{message}. More than max_nonfinite = {self.max_nonfinite}: the run stops. Lower the learning "
                    "rate, or look at the data"
                )
        metrics = controller.observe(margins)
        self.trainer.beta = controller.beta
        for key, value in metrics.items():
            # TRL logs the mean of what is appended here.
            self.trainer._metrics["train"][key].append(value)

    def _bound(self) -> Risk:
        if self.controller is None:
            raise ConfigError(
                "RiskBetaCallback is not attached: call callback.attach(trainer) before trainer.train()"
            )
        return self.controller

    # ---- the trainer's events ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up a checkpoint's state, and say what to expect."""
        controller = self._bound()
        if state.global_step > 0:
            saved = (state.stateful_callbacks or {}).get(STATE_KEY)
            if saved is None:
                raise CheckpointError(
                    f"the checkpoint of step {state.global_step} holds no state of the risk controller: it was made "
                    "without RiskBetaCallback; start a new run, or resume without the callback"
                )
            controller.load_state_dict(saved["method"])
            self.num_nonfinite = int(saved["num_nonfinite"])
        self._step_margins = []
        self.trainer.beta = controller.beta
        per_step = args.gradient_accumulation_steps if self.config.scope == "micro" else 1
        for note in controller.start_notes(int(state.max_steps) * per_step):
            logger.info(note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """In scope ``step`` let the controller learn; then put its state where every checkpoint takes it along."""
        controller = self._bound()
        if self._step_margins:
            self._observe(torch.cat(self._step_margins))
            self._step_margins = []
        # Not as an ExportableState: the trainer would restore that into a new, unbound callback.
        state.stateful_callbacks[STATE_KEY] = {
            "method": controller.state_dict(),
            "num_nonfinite": self.num_nonfinite,
        }
        if controller.stop_reason:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End with the reason where the monitor has stopped the run.

        Raises:
            RunStopped: If it has.
        """
        if reason := self._bound().stop_reason:
            raise RunStopped(f"{reason}. A checkpoint of step {state.global_step} is saved")


@contextmanager
def recorded_gathers(accelerator: Any) -> Iterator[list[Tensor]]:
    """Collect what ``accelerator.gather`` returns while the context lasts."""
    gathered: list[Tensor] = []
    gather = accelerator.gather

    def gather_and_keep(tensor: Any) -> Any:
        result = gather(tensor)
        if isinstance(result, Tensor):
            gathered.append(result)
        return result

    accelerator.gather = gather_and_keep
    try:
        yield gathered
    finally:
        del accelerator.gather


def reward_margins(gathered: list[Tensor]) -> Tensor:
    """Return the reward margins among the tensors that a trainer has gathered for its log. Shape [N].

    They follow chosen and rejected rewards and the accuracies; that each is what the others say is checked.

    Raises:
        ModelError: If no four tensors fit together.

    Example:
        >>> chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([0.5, 3.0])
        >>> reward_margins([torch.ones(3), chosen, rejected, torch.tensor([1.0, 0.0]), chosen - rejected])
        tensor([ 1.5000, -2.0000])
    """
    for chosen, rejected, accuracy, margins in zip(
        gathered, gathered[1:], gathered[2:], gathered[3:], strict=False
    ):
        if not (chosen.ndim == 1 and chosen.shape == rejected.shape == accuracy.shape == margins.shape):
            continue
        fits = torch.equal(accuracy, (chosen > rejected).to(accuracy.dtype))
        if fits and torch.allclose(margins, chosen - rejected, rtol=0, atol=0, equal_nan=True):
            return margins.detach().to("cpu", torch.float32)
    raise ModelError(
        "the rewards could not be found among what TRL gathers in its loss: its trainer was changed or subclassed; "
        "use RiskBetaDPOTrainer"
    )
