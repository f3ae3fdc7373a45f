"""The data sets of a preference run: prepared, given their reference log-probabilities, evaluated.

The trainer that mixes this in owns policy and method; its loop asks here for the loader and the metrics of an
evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from dynamic_dpo.errors import ModelError
from dynamic_dpo.methods.base import PreferenceMethod
from dynamic_dpo.trainers.arguments import Truncation
from dynamic_dpo.trainers.datasets import prepare_pairs
from dynamic_dpo.trainers.evaluation import evaluate_pairs
from dynamic_dpo.trainers.policy import PolicyAndReference
from dynamic_dpo.trainers.reference_pass import ReferencePass


class ReferencedData:
    """Mixed into the preference trainer: no pair is trained or evaluated without what the reference says of it."""

    # Of the Hugging Face trainer and of the one that mixes this in.
    args: Any
    accelerator: Any
    model: Any
    model_wrapped: Any
    state: Any
    is_in_train: bool
    train_dataset: Any
    eval_dataset: Any
    method: PreferenceMethod
    policy: PolicyAndReference
    truncation: Truncation
    until_stopped: Any
    _num_proc: int | None
    _reference: ReferencePass | None = None

    def _prepare(self, dataset: Any) -> Any:
        if isinstance(dataset, dict):
            return {name: self._prepare(part) for name, part in dataset.items()}
        return prepare_pairs(dataset, self.policy.tokenizer, self.truncation, self._num_proc)

    def ensure_reference(self) -> None:
        """Give every data set its reference log-probabilities; done once, before the policy moves."""
        if self._reference or not self.method.needs.reference:
            return
        self._reference = self.policy.open_reference(
            self.accelerator, show_progress=not self.args.disable_tqdm
        )
        if self.train_dataset is not None:
            self.train_dataset = self._reference.attach(self.train_dataset, name="train")
        self.eval_dataset = self._attach_eval(self.eval_dataset)
        self.policy.release_reference()

    def _attach_eval(self, dataset: Any) -> Any:
        if dataset is None or self._reference is None:
            return dataset
        if isinstance(dataset, dict):
            return {name: self._reference.attach(part, name=name) for name, part in dataset.items()}
        return self._reference.attach(dataset, name="eval")

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Score every pair of ``dataloader`` as in training, without gradients; no state changes."""
        model = self.model_wrapped if self.is_in_train else self.model
        was_training = model.training
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            metrics, count = evaluate_pairs(
                self.until_stopped(dataloader),
                method=self.method,
                plan=lambda pairs: self.policy.scorer.plan(pairs, budget_factor=2),
                forward=lambda pairs: self.policy.forward(model, pairs, self.method.needs),
                accelerator=self.accelerator,
                prefix=metric_key_prefix,
                description=description,
                show_progress=not self.args.disable_tqdm,
            )
        model.train(was_training)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=count)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of an evaluation set, with reference log-probabilities.

        Raises:
            ModelError: If a new set is given after the policy has moved and its reference is gone.
        """
        self.ensure_reference()
        if (
            eval_dataset is not None
            and eval_dataset is not self.eval_dataset
            and not isinstance(eval_dataset, str)
        ):
            if self._reference and not self.policy.can_score_reference(
                policy_moved=self.state.global_step > 0
            ):
                raise ModelError(
                    "this evaluation set has no reference log-probabilities and the reference is gone: give it "
                    "to the trainer as eval_dataset, or pass ref_model as a model"
                )
            eval_dataset = self._attach_eval(self._prepare(eval_dataset))
        return super().get_eval_dataloader(eval_dataset)  # type: ignore[misc]
