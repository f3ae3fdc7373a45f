"""The policy and its reference: how they are loaded, adapted and scored, and when the reference is freed.

The reference is the model given as such, or the policy as it was before the first step; with a fresh adapter that
is the policy with the adapter off. Of an adapter with which training goes on it is the adapter as it was, or the base
under it where that is asked for.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from dynamic_dpo.engine.capability import inference
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.head import LiveReference
from dynamic_dpo.engine.reference_store import ReferenceStore, default_reference_dir
from dynamic_dpo.engine.rounding import arithmetic_of
from dynamic_dpo.engine.router import router_loss_of
from dynamic_dpo.engine.rows import PairBatch, Rows, row_lengths
from dynamic_dpo.engine.score import PairLogps
from dynamic_dpo.engine.scorer import PairScorer
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.methods.base import Needs, PairForward
from dynamic_dpo.models.adapters import ModelFiles, free_unused_models
from dynamic_dpo.models.causal_lm import causal_lm
from dynamic_dpo.models.dropout import ConfiguredDropout, switch_off_dropout
from dynamic_dpo.models.sources import is_same_model, load_tokenizer, resolve_model, weights_fingerprint
from dynamic_dpo.models.trained_adapter import (
    add_adapter,
    check_has_trained_weights,
    find_policy,
    gives_base_back,
    load_policy_files,
    policy_fingerprint,
)
from dynamic_dpo.models.trained_weights import hold_trained_weights_in_float32
from dynamic_dpo.models.vocabulary import check_same_vocabulary_size
from dynamic_dpo.trainers.ranks import on_main_process
from dynamic_dpo.trainers.reference_pass import ReferencePass, collate_pairs
from dynamic_dpo.trainers.sharding import adapters_off, frozen_twin, same_number_of_passes, shard
from dynamic_dpo.utils.hashing import content_hash

logger = logging.getLogger("dynamic_dpo")

# Where the self-check looks for its pairs, and the bytes that the logits of one sequence may take in it.
_PAIRS_TO_CHOOSE_FROM, _MOST_LOGIT_BYTES = 512, 2**30
# What accelerate's names of mixed precision compute in.
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What is scored where a rank has no pair and must make a pass all the same.
_ANY_PAIR = PairBatch([[0, 0]], [[0, 0]], [[0, 0]], [-1])


class PolicyAndReference:
    """Holds both models and turns pairs into what a method sees.

    Args:
        model: The policy or its name, which may be the folder of an adapter.
        ref_model: The reference, its name, or ``None`` for the policy before the first step.
        tokenizer: The tokenizer, or ``None`` for the model's own.
        peft_config: Adapter configuration, or ``None`` for full fine-tuning.
        disable_dropout: Whether dropout is switched off.
        gradient_checkpointing: Whether activations will be recomputed; adapters need inputs with gradients then.
        fingerprint: Fingerprint of the reference's weights where its files are known.
        autocast: Whether training runs under autocast.
        reference_is_base: Whether the reference is the model under the adapter that the policy came with.
        model_options: How models are loaded that are given by name, as ``from_pretrained`` takes it; a ``revision``
            is the policy's.

    Attributes:
        model: The policy, adapters included.
        tokenizer: The tokenizer.
        is_own_reference: Whether the reference is the policy's own start, or the base under its adapter.
        base_is_reference: Whether the policy with its adapter off is the reference.
        reference_dtype: The dtype of the reference's weights.
        is_sharded: Whether weights are spread over the ranks.
        starts_as_reference: Whether both start from the same weights, in whatever dtype: margins are then 0.

    Raises:
        ConfigError: If the base under an adapter is to be the reference, and there is no such base.
        ModelError: If a model or tokenizer cannot be loaded or the two models do not go together.
    """

    def __init__(
        self,
        model: nn.Module | str,
        ref_model: nn.Module | str | None,
        tokenizer: Any,
        peft_config: Any,
        *,
        disable_dropout: bool,
        gradient_checkpointing: bool,
        fingerprint: str | None,
        autocast: bool = False,
        reference_is_base: bool = False,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        self.owns_reference = self.keeps_reference = self.is_sharded = False
        self.moves_reference = False
        self.tail_weight = 1.0
        self._reference_scorer: PairScorer | None = None
        options = dict(model_options or {})
        policy: Any = model
        files = reference_files = None
        if isinstance(model, str):
            files = find_policy(model, revision=options.pop("revision", None))
            policy = load_policy_files(files, gradient_checkpointing=gradient_checkpointing, **options)
            tokenizer = tokenizer or load_tokenizer(files.tokenizer)
            if isinstance(ref_model, str) and _is_base(find_policy(ref_model), files):
                ref_model, reference_is_base = None, True
            reference_files = files
        if reference_is_base:
            _check_has_base(policy, ref_model)
            if files is not None:
                reference_files = ModelFiles(files.base, None, files.base)
            if not gives_base_back(policy):
                if files is None:
                    raise ConfigError(
                        "the adapter trains biases of the model under it, so that switching it off "
                        "does not give that model back: give it as ref_model instead of reference_is_base"
                    )
                ref_model, reference_is_base = files.base.name, False
        if isinstance(ref_model, str):
            reference_files = find_policy(ref_model)
            ref_model = load_policy_files(reference_files, trained=False, **options)
            self.owns_reference = True
        elif ref_model is not None:
            reference_files = None
        if ref_model is policy:
            raise ModelError("model and ref_model are the same object: leave ref_model out instead")
        self.tokenizer = tokenizer or _tokenizer_of(policy)
        self.recomputes = gradient_checkpointing
        self.is_own_reference = ref_model is None
        self.reference_model: Any = ref_model

        def fingerprint_of_reference() -> str:
            if reference_files is not None:
                return policy_fingerprint(reference_files) + _changed_in_loading(options)
            weights = weights_fingerprint(policy if ref_model is None else ref_model)
            return f"{weights} without its adapter" if reference_is_base else weights

        # Taken before adapters rename the parameters, so that LoRA and full fine-tuning share a store.
        # Where one rank has loaded the weights for all, only that one can read them; and one reading will do.
        self.fingerprint = fingerprint or on_main_process(PartialState(), fingerprint_of_reference)
        self.starts_as_reference = not reference_is_base and (
            ref_model is None or on_main_process(PartialState(), lambda: _same_weights(policy, ref_model))
        )
        if peft_config is not None:
            policy = add_adapter(policy, peft_config, gradient_checkpointing=gradient_checkpointing)
        # A fresh one that trains the base's biases is scored before its first step instead.
        self.base_is_reference = reference_is_base or (peft_config is not None and gives_base_back(policy))
        if gradient_checkpointing and hasattr(policy, "peft_config"):
            policy.enable_input_require_grads()
        check_has_trained_weights(policy)
        hold_trained_weights_in_float32(policy, autocast=autocast)
        self.configured_dropout = None
        if disable_dropout:
            switch_off_dropout(policy)
            self.configured_dropout = ConfiguredDropout(policy)
        if ref_model is not None:
            check_same_vocabulary_size(policy, ref_model)
        self.model: Any = policy
        reference: Any = self.model if ref_model is None else ref_model
        self.reference_dtype: torch.dtype = causal_lm(reference).dtype

    def prepare(
        self,
        accelerator: Any,
        *,
        is_sharded: bool,
        keep_reference: bool,
        move_reference: bool = False,
        tail_weight: float = 1.0,
    ) -> None:
        """Spread the policy over the ranks where it is to be, before anything is computed with it. Collective then.

        Args:
            accelerator: The trainer's accelerator.
            is_sharded: Whether FSDP2 shards the run's models.
            keep_reference: Whether the reference is to stay at hand for the whole run; full fine-tuning needs a copy
                of the policy's start.
            move_reference: Whether the reference is to follow the policy: it then stays at hand too, and is scored
                beside it.
            tail_weight: Weight of completions' tails in the reference's sums, as in `Needs`.
        """
        self.tail_weight = tail_weight
        self.moves_reference = move_reference
        keep_reference |= move_reference
        self.accelerator = accelerator
        self.is_sharded = is_sharded
        self.keeps_reference = keep_reference
        if move_reference and self.reference_model is not None:
            self._make_movable(self.reference_model)
        if keep_reference and self.reference_model is None and not self.base_is_reference:
            twin = frozen_twin if is_sharded else copy.deepcopy
            self.reference_model = twin(self.model).requires_grad_(False)
            self.owns_reference = True
            self._place(self.reference_model)  # Before the policy: sharding takes their common weights apart.
        if is_sharded:
            shard(accelerator, self.model)

    def _place(self, model: Any) -> None:
        """Bring a reference to where it is scored."""
        if self.is_sharded:
            shard(self.accelerator, model)
        else:
            model.to(self.accelerator.device)

    def build_scorer(self, engine: EngineConfig, *, router_coefficient: float | None = None) -> None:
        """Find out which layout the policy can take, and whether its router has a balancing loss.

        Collective over ranks where the policy is sharded: it is tried as it is trained.

        Args:
            engine: Engine settings.
            router_coefficient: Weight of the balancing loss; by default what the model's configuration says.
        """
        self.engine = engine
        # In the run's mixed precision, in which layouts are tried.
        with self._without_dropout(), autocast_of(self.accelerator):
            self.scorer = PairScorer(self.model, engine, recomputes=self.recomputes)
        self.scorer.router = router_loss_of(causal_lm(self.model), coefficient=router_coefficient)

    @property
    def positions_computed(self) -> int:
        """Token positions that policy and reference have computed so far, padding included."""
        reference = 0 if self._reference_scorer is None else self._reference_scorer.num_positions
        return self.scorer.num_positions + reference

    def answering(self) -> AbstractContextManager[Any]:
        """Return the context of a training: in it the policy itself scores rows, so that wrappers see every pass."""
        stack = ExitStack()
        stack.enter_context(self._without_dropout())
        stack.enter_context(self.scorer.answering(self.model))
        return stack

    def _without_dropout(self) -> AbstractContextManager[None]:
        return self.configured_dropout.off() if self.configured_dropout else nullcontext()

    def saved_as_given(self) -> AbstractContextManager[None]:
        """Return the context in which the policy's configuration is saved: with the dropout that it came with."""
        return self.configured_dropout.as_given() if self.configured_dropout else nullcontext()

    def forward(self, model: Any, pairs: PairBatch, needs: Needs) -> PairForward:
        """Score pairs with the policy (wrapped as ``model``) and put the reference's values beside them."""
        logps = self.scorer.score(model, pairs, needs=needs, reference=self._live_reference)
        known = [pairs.ref_chosen_logps, pairs.ref_rejected_logps]
        if self.moves_reference:
            known = [*self._score_reference(pairs)[:2]]

        def reference(values: torch.Tensor | None) -> torch.Tensor:
            return torch.zeros_like(logps.chosen) if values is None else values.to(logps.chosen)

        return PairForward(
            logps.chosen,
            logps.rejected,
            reference(known[0]),
            reference(known[1]),
            logps.chosen_lengths,
            logps.rejected_lengths,
            logps.statistics,
            logps.token_logps if needs.token_logps else None,
            logps.token_owners if needs.token_logps else None,
            logps.router_loss,
            whole_chosen_logps=logps.whole_chosen,
        )

    def idle(self, model: Any, needs: Needs) -> torch.Tensor:
        """Make a pass for no pair, since other ranks make one; return a zero with gradients for all weights."""
        forward = self.forward(model, _ANY_PAIR, needs)
        return 0.0 * (forward.policy_chosen_logps + forward.policy_rejected_logps).sum()

    def self_check(self, dataset: Any, accelerator: Any, *, num_pairs: int = 3) -> None:
        """Score a few of the first 512 pairs through the layout in use, and alone through the model's own logits.

        They are the shortest, in which most faults of a layout show, and the longest, for windows and positions that
        differ from some length on. All logits of a sequence are computed: it is the longest with which they fit.

        Raises:
            ModelError: If they differ by more than rounding.
        """
        if self.scorer.layout == "plain" and not self.scorer.separate_head:
            return  # What would be checked is the oracle itself.
        first = collate_pairs(dataset.select(range(min(_PAIRS_TO_CHOOSE_FROM, len(dataset)))).to_list())[
            "pairs"
        ]
        lengths = row_lengths(first, shared=False)
        # Answers of a token or two would attend to next to nothing.
        tiny = [min(len(c), len(r)) < 4 for c, r in zip(first.chosen, first.rejected, strict=True)]
        order = sorted(range(len(first)), key=lambda i: (tiny[i], lengths[i]))
        width = 4 * causal_lm(self.model).config.get_text_config().vocab_size
        longest = max(order, key=lambda i: lengths[i] * (lengths[i] * width <= _MOST_LOGIT_BYTES))
        pairs = first.select(list(dict.fromkeys([*order[: num_pairs - 1], longest])))
        with accelerator.autocast():
            self.scorer.self_check(self.model, pairs)

    # ---- the reference ----

    def open_reference(self, accelerator: Any, *, show_progress: bool) -> ReferencePass:
        """Return the pass that scores data sets with the reference, its store opened."""
        return ReferencePass(
            accelerator,
            ReferenceStore(
                self.engine.reference_dir or default_reference_dir(),
                fingerprint=self.fingerprint,
                dtype=self._arithmetic(accelerator),
                tail_weight=self.tail_weight,
            ),
            self._score_reference,
            self._plan_of_reference,
            show_progress=show_progress,
        )

    def _live_reference(self, rows: Rows) -> LiveReference:
        """Run the reference on a micro-batch of the policy's rows."""
        model, scorer = self._reference_parts()
        if (rows.spans and not scorer.packed) or (rows.shared and not scorer.shares(rows)):
            raise ModelError(
                f"the method reads the reference's logits on the policy's rows, and {type(model).__name__} cannot "
                f"share prefixes: {scorer.reason}. Set engine.layout=plain"
            )
        return scorer.live_reference(model, rows, self._as_reference)

    def _reference_parts(self) -> tuple[Any, PairScorer]:
        """Return the model that is the reference, where it is scored, and its scorer."""
        if self.reference_model is None:
            return self.model, self.scorer
        if self._reference_scorer is None:
            self._place(self.reference_model)
            # In the policy's layout, which it could not take if its configuration spoke of dropout.
            with ConfiguredDropout(self.reference_model).off():
                self._reference_scorer = PairScorer(self.reference_model, self.engine)
        return self.reference_model, self._reference_scorer

    def _as_reference(self) -> AbstractContextManager[Any]:
        """Return the context in which the model of `_reference_parts` is the reference."""
        stack = ExitStack()
        if self.reference_model is None and self.base_is_reference:
            stack.enter_context(adapters_off(self.model))
        stack.enter_context(inference(self.model if self.reference_model is None else self.reference_model))
        return stack

    @contextmanager
    def reference_at_hand(self) -> Iterator[Any]:
        """Yield the reference as a model to compute with, ``None`` where it is not in memory.

        A model of its own is kept by methods that run it beside the policy; under an adapter it is the policy's base.
        """
        if self.reference_model is not None and self.keeps_reference:
            yield self.reference_model
        elif self.base_is_reference:
            with adapters_off(self.model):
                yield self.model
        else:
            yield None

    def can_score_reference(self, *, policy_moved: bool) -> bool:
        """Return whether the reference can still be scored."""
        if self.is_own_reference:
            return self.base_is_reference or not policy_moved
        return self.reference_model is not None

    def _arithmetic(self, accelerator: Any) -> str:
        """Return what decides the last bits of the reference's log-probabilities, for the key of its store."""
        model = self.reference_model if self.reference_model is not None else causal_lm(self.model)
        names = [str(model.dtype).removeprefix("torch.")]
        autocast = _AUTOCAST.get(accelerator.mixed_precision)
        if autocast is not None:
            names.append(str(autocast).removeprefix("torch."))
            if self.is_sharded:
                # Weights are gathered in that dtype, and with them all states between the layers have it.
                names.append("sharded")
        if getattr(model, "is_quantized", False):
            names.append("quantized")
        if (autocast or model.dtype).itemsize < 4:
            # A margin would be off by nats if its two halves came from two layouts: see `engine.rounding`.
            with autocast_of(accelerator):
                names.append(self._reference_parts()[1].layout)
        return "+".join(names)

    def arithmetic_at_start(self, accelerator: Any) -> torch.dtype:
        """Return the arithmetic whose rounding the first margins may show: the narrower of both models'."""
        with autocast_of(accelerator):
            policy = arithmetic_of(self.scorer.dtype, accelerator.device)
            reference = arithmetic_of(self.reference_dtype, accelerator.device)
        if torch.finfo(reference).eps <= torch.finfo(policy).eps:
            return policy
        logger.warning(
            "the policy computes in %s and the reference in %s: every margin carries its rounding, from the first "
            "step on. Load ref_model in the policy's dtype, or set bf16=True",
            *(str(dtype).removeprefix("torch.") for dtype in (policy, reference)),
        )
        return reference

    def _plan_of_reference(self, pairs: PairBatch) -> list[list[int]]:
        plan = self.scorer.plan(pairs, with_gradients=False)
        return same_number_of_passes(self.accelerator, plan) if self.is_sharded else plan

    def _score_reference(self, pairs: PairBatch) -> PairLogps:
        with autocast_of(self.accelerator):
            model, scorer = self._reference_parts()
        with self._as_reference(), autocast_of(self.accelerator):
            needs = Needs(tail_weight=self.tail_weight)
            return scorer.score(model, pairs if len(pairs) else _ANY_PAIR, needs=needs)

    def _make_movable(self, reference: Any) -> None:
        """Hold a reference that was given in the policy's dtype, in which small moves are not rounded away."""
        ours, theirs = (dict(model.named_parameters()) for model in (self.model, reference))
        if {name: one.shape for name, one in ours.items()} != {
            name: one.shape for name, one in theirs.items()
        }:
            raise ModelError(
                "the reference is to follow the policy, and ref_model has other weights than it: leave it out, "
                "or give one of the same architecture"
            )
        for name, weight in theirs.items():
            weight.data = weight.data.to(ours[name].dtype)
        self.reference_dtype = causal_lm(reference).dtype

    def move_reference(self, share: float) -> None:
        """Make the reference's weights ``share`` times the policy's plus the rest of their own."""
        with torch.no_grad():
            pairs = zip(self.reference_model.parameters(), self.model.parameters(), strict=True)
            for reference, policy in pairs:
                reference.copy_((1.0 - share) * reference + share * policy)

    def release_reference(self) -> None:
        """Free a separate reference model's memory: all of it if it was loaded here, else the GPU's.

        One that was given and is sharded now stays so: each rank keeps its part.
        """
        if self.reference_model is not None and not self.keeps_reference:
            if not self.is_sharded:
                self.reference_model.to("cpu")
            self._reference_scorer = None
            if self.owns_reference:
                self.reference_model = None
            free_unused_models()


def autocast_of(accelerator: Any) -> AbstractContextManager[None]:
    """Return the accelerator's mixed-precision context."""
    context: AbstractContextManager[None] = accelerator.autocast()
    return context


def _tokenizer_of(model: Any) -> Any:
    name = getattr(model.config, "_name_or_path", "")
    if not name:
        raise ModelError(
            "no tokenizer: pass processing_class, since the model does not say where it came from"
        )
    return load_tokenizer(resolve_model(name))


def _changed_in_loading(options: dict[str, Any]) -> str:
    """Return what options of ``from_pretrained`` make of a file's weights: those that were rounded are others."""
    same = {"attn_implementation", "revision"}
    changes = {name: str(value) for name, value in options.items() if name not in same}
    if changes.get("dtype") in ("float32", "torch.float32"):
        del changes["dtype"]
    return f" loaded as {content_hash(changes)}" if changes else ""


def _is_base(reference: ModelFiles, policy: ModelFiles) -> bool:
    """Return whether a reference is the model under the policy's adapter."""
    if policy.adapter is None or reference.adapter is not None:
        return False
    return is_same_model(reference.base, policy.base)


def _check_has_base(policy: Any, ref_model: Any) -> None:
    if ref_model is not None:
        raise ConfigError("reference_is_base and ref_model name two references: leave one of them out")
    if not hasattr(policy, "peft_config"):
        raise ConfigError(
            f"reference_is_base is for a policy with an adapter, and {type(policy).__name__} has none: leave it out; "
            "the reference is the policy as it is then"
        )


def _same_weights(model: Any, reference: Any) -> bool:
    ours, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    if ours.keys() != theirs.keys():
        return False

    def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
        if a.is_meta or b.is_meta or a.shape != b.shape:
            return False
        # What was cast once is compared as cast: a bfloat16 copy of float32 weights is a copy.
        narrow = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
        return torch.equal(a.detach().cpu().to(narrow), b.detach().cpu().to(narrow))

    return all(equal(parameter, theirs[name]) for name, parameter in ours.items())
