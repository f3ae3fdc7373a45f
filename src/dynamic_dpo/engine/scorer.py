"""The engine as trainer and evaluation see it: token ids in, log-probabilities out, in the layout the model can take.

Pairs are scored one micro-batch at a time, with gradients where they are wanted; single sequences all at once. How
a step is cut into micro-batches stands in `plan`, what is kept of the reference in `reference_store`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamic_dpo.engine.capability import check_layouts_agree, detect_capability, inference
from dynamic_dpo.engine.config import EngineConfig
from dynamic_dpo.engine.head import LiveReference, LogitTransform, Readout, is_plain_linear
from dynamic_dpo.engine.layers import use_lean_layers
from dynamic_dpo.engine.offload import OffloadedActivations, can_offload_from
from dynamic_dpo.engine.plan import group_by_prompt, plan_microbatches, split_largest
from dynamic_dpo.engine.rotary import embed_rows_alone, fixed_length
from dynamic_dpo.engine.router import RouterLoss
from dynamic_dpo.engine.rows import (
    PairBatch,
    PromptBatch,
    PromptsAndCompletions,
    Rows,
    packed_rows,
    plain_rows,
    row_lengths,
    scored_lengths,
    shared_rows,
)
from dynamic_dpo.engine.score import (
    PairLogps,
    RowScores,
    SequenceLogps,
    completion_lengths,
    predicting_logits,
    predicting_states,
    score_tokens,
    score_tokens_through_logits,
    scoring_enabled,
    scoring_pass,
    sum_by_sequence,
    tail_weights,
)
from dynamic_dpo.engine.sharded import head_for_later, is_sharded
from dynamic_dpo.engine.token_budget import default_token_budget
from dynamic_dpo.errors import ConfigError, DataError
from dynamic_dpo.methods.base import Needs
from dynamic_dpo.models.causal_lm import causal_lm, inside_wrappers

logger = logging.getLogger("dynamic_dpo")

# Without gradients no activations are kept, and so many times the tokens fit.
_BUDGETS_WITHOUT_GRADIENTS = 2
# Prompts whose micro-batches are planned together: the plan's work grows faster than their number.
_PROMPTS_AT_ONCE = 256


class PairScorer:
    """Scores preference pairs, or single sequences, with a model.

    Building it tries out what the model can do, which leaves packed attention and lean layers in it where they give
    the same answers. Its ``forward`` is another one only while something is scored, or within `answering`.

    Args:
        model: A causal language model, with or without adapters, not yet wrapped for data parallelism.
        config: Engine settings.
        recomputes: Whether activations will be recomputed in backward.

    Attributes:
        tokens_per_microbatch: The token budget, chosen where the settings leave it open.
        shared: Whether rows share their prefix.
        packed: Whether pairs also lie in one row without padding.
        longest: Tokens of the longest sequence that may share a row; longer ones are laid plain. ``None``: any.
        reason: Why rows do not share their prefix, where they could have been asked to.
        reason_against_packing: Why pairs do not lie in one row, likewise.
        num_positions: Token positions computed so far, padding included, in passes of any kind.
        router: The balancing loss that training passes return beside the scores; ``None`` for none.

    Raises:
        ConfigError: If ``layout`` is ``shared`` or ``packed`` and the model cannot take such rows.
        ModelError: If the model is no causal language model.
    """

    def __init__(
        self, model: nn.Module, config: EngineConfig | None = None, *, recomputes: bool = False
    ) -> None:
        self.config = config or EngineConfig()
        lm = causal_lm(model)
        lean = use_lean_layers(lm) if self.config.lean_layers else 0
        capability = detect_capability(model)
        # After the trial, which is to see the model's own embeddings.
        self._own_positions = fixed_length(lm) is not None
        embed_rows_alone(lm)
        wanted = self.config.layout
        if wanted in ("shared", "packed") and not getattr(capability, wanted):
            reason = capability.reason_against_packing if wanted == "packed" else capability.reason
            verb = "share prefixes" if wanted == "shared" else "take packed pairs"
            raise ConfigError(
                f"engine.layout is {wanted!r}, but {type(lm).__name__} cannot {verb}: {reason}. "
                "Use 'auto' or 'plain'"
            )
        self.packed = capability.packed and wanted in ("auto", "packed")
        self.shared = self.packed or (capability.shared and wanted != "plain")
        self.longest = capability.longest_packed if self.packed else capability.longest_shared
        self.separate_head = capability.separate_head
        self.transform = capability.transform
        self.router: RouterLoss | None = None
        self.reason = capability.reason
        self.reason_against_packing = capability.reason_against_packing
        self.dtype: torch.dtype = lm.dtype
        self.tokens_per_microbatch = self.config.tokens_per_microbatch or default_token_budget(
            lm, recomputes=recomputes, lean=lean > 0
        )
        if self.config.layout == "auto" and not self.shared:
            logger.warning(
                "%s cannot share prefixes: %s. Using the plain layout, which computes every prompt twice",
                type(lm).__name__,
                self.reason,
            )
        elif self.config.layout == "auto" and not self.packed:
            logger.info(
                "%s cannot take packed pairs: %s. Using padded rows, one a pair",
                type(lm).__name__,
                self.reason_against_packing,
            )
        if self.shared and self.longest is not None:
            logger.info(
                "%s: sequences of more than %d tokens get a row each, for its windows or dynamic positions",
                type(lm).__name__,
                self.longest,
            )
        self.num_positions = 0
        self._answering: list[nn.Module] = []

    def _score_rows(
        self,
        model: nn.Module,
        rows: Rows,
        *,
        readout: Readout | None = None,
        tokens: bool = False,
        states: bool = False,
        tail_weight: float = 1.0,
    ) -> RowScores:
        """Answer ``model(rows=rows)``: sums, and on request statistics, single tokens, or bare states.

        Passes with gradients also return the balancing loss, where there is one.
        """
        lm = causal_lm(model)
        if states and not self.separate_head:
            return {"logits": predicting_logits(lm, rows).detach()}
        if states:
            seen = predicting_states(lm, rows).detach()
            head = lm.get_output_embeddings()
            later = head_for_later(head, seen, is_plain=is_plain_linear(head)) if is_sharded(model) else {}
            return {"states": seen, **later}
        router = self.router if torch.is_grad_enabled() else None
        if self.separate_head:
            scores = score_tokens(
                lm,
                rows,
                head_chunk=self.config.head_chunk,
                readout=readout,
                transform=self.transform,
                router=router,
            )
        else:
            scores = score_tokens_through_logits(lm, rows, readout=readout, router=router)
        answer = {"logps": sum_by_sequence(scores.logps, rows)}
        if tail_weight != 1.0:
            answer["whole_logps"] = answer["logps"]
            weights = tail_weights(rows, tail_weight, scores.logps.dtype)
            answer["logps"] = sum_by_sequence(scores.logps * weights, rows)
        if readout and readout.statistics:
            answer["statistics"] = sum_by_sequence(scores.statistics, rows)
        if tokens:
            answer["tokens"] = scores.logps
        if scores.router_loss is not None:
            answer["router_loss"] = scores.router_loss
        return answer

    @contextmanager
    def answering(self, model: nn.Module) -> Iterator[None]:
        """Let ``model(rows=...)`` score rows for as long as the context lasts, instead of for each call anew.

        Wrappers that take hold of ``forward`` itself (autocast, compilation) are to be made within it, so that they
        see every pass.

        Args:
            model: The model the scorer was built on, wrapped or not.
        """
        inner = inside_wrappers(model)
        if any(inner is one for one in self._answering):
            yield
            return
        self._answering.append(inner)
        try:
            with scoring_enabled(inner, self._score_rows):
                yield
        finally:
            self._answering.remove(inner)

    def _call(self, model: nn.Module, rows: Rows, **options: Any) -> RowScores:
        """Score rows through the model as it is wrapped."""
        self.num_positions += rows.input_ids.numel()
        with self.answering(model):
            return scoring_pass(model, rows=rows, **options)

    @property
    def layout(self) -> str:
        """Name of the layout in use; sequences beyond `longest` are laid plain in any case."""
        return "packed" if self.packed else "shared" if self.shared else "plain"

    def _is_long(self, batch: PromptsAndCompletions) -> list[bool]:
        """Return of each prompt whether one of its sequences is too long to share a row."""
        limit = self.longest
        return [limit is not None and length > limit for length in row_lengths(batch, shared=False)]

    def shares(self, rows: Rows) -> bool:
        """Return whether the model may take rows whose completions share a prompt and are as long as these."""
        return self.shared and (self.longest is None or int(rows.position_ids.max()) < self.longest)

    def rows(self, batch: PromptsAndCompletions) -> Rows:
        """Lay out prompts and their completions as rows on the CPU."""
        if self.shared and not any(self._is_long(batch)):
            return packed_rows(batch) if self.packed else shared_rows(batch)
        return replace(plain_rows(batch), own_positions=self._own_positions)

    def _budget(self, with_gradients: bool) -> int:
        return self.tokens_per_microbatch * (1 if with_gradients else _BUDGETS_WITHOUT_GRADIENTS)

    def plan(
        self, batch: PromptsAndCompletions, *, with_gradients: bool = True, at_least: int = 1
    ) -> list[list[int]]:
        """Cut prompts with their completions into micro-batches within the token budget.

        Args:
            batch: Pairs, or prompts with any number of completions.
            with_gradients: Whether a backward pass follows; without one twice the budget fits.
            at_least: Micro-batches to make at least, where ranks must agree on a number.

        Returns:
            Micro-batches as lists of indices into ``batch``.
        """
        is_long = self._is_long(batch)
        # A sequence beyond `longest` would make every other one of its micro-batch plain.
        plan = [
            part
            for long in (True, False)
            for part in self._plan_alike(
                batch, [i for i, it in enumerate(is_long) if it == long], long, with_gradients
            )
        ]
        return split_largest(plan, at_least)

    def _plan_alike(
        self, batch: PromptsAndCompletions, index: list[int], is_long: bool, with_gradients: bool
    ) -> list[list[int]]:
        """Plan the prompts at ``index``, all of which are laid in one layout."""
        shared = self.shared and not is_long
        lengths = row_lengths(batch, shared=shared)
        rows_per_prompt = 1 if shared else max((len(batch.completions[i]) for i in index), default=1)
        plan = plan_microbatches(
            [lengths[i] for i in index],
            self._budget(with_gradients),
            rows_per_prompt=rows_per_prompt,
            padded=not (self.packed and shared),
        )
        return [[index[place] for place in part] for part in plan]

    def score(
        self,
        model: Any,
        pairs: PairBatch,
        *,
        needs: Needs | None = None,
        reference: Callable[[Rows], LiveReference] | None = None,
    ) -> PairLogps:
        """Score one micro-batch of pairs.

        Args:
            model: The model the scorer was built on, wrapped or not.
            pairs: Pairs that fit memory at once.
            needs: What else is to be read than sums; nothing by default.
            reference: Scores the same rows with the reference, where ``needs`` has a live one.

        Returns:
            Log-probabilities and lengths on the model's device, each of shape [B], and what ``needs`` asks for.
        """
        rows = self.rows(pairs).to(next(model.parameters()).device)
        options: dict[str, Any] = {}
        names = [statistic.name for statistic in needs.statistics] if needs else []
        if needs and needs.statistics:
            live = reference(rows) if reference and needs.live_reference else None
            options["readout"] = Readout(needs.statistics, live)
        if needs and needs.token_logps:
            options["tokens"] = True
        if needs and needs.tail_weight != 1.0:
            options["tail_weight"] = needs.tail_weight
        with self._activation_storage(model, rows.input_ids.device):
            scores = self._call(model, rows, **options)
        logps, lengths = (values.view(-1, 2) for values in (scores["logps"], completion_lengths(rows)))
        sums = scores["statistics"].view(len(names), -1, 2) if names else ()
        statistics = dict(zip(names, sums, strict=True))
        return PairLogps(
            logps[:, 0],
            logps[:, 1],
            lengths[:, 0],
            lengths[:, 1],
            statistics,
            scores.get("tokens", logps.new_empty(0)),
            rows.owners,
            scores.get("router_loss"),
            scores["whole_logps"].view(-1, 2)[:, 0] if "whole_logps" in scores else None,
        )

    def score_sequences(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        masks: Sequence[Sequence[int] | None] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> SequenceLogps:
        """Score any number of sequences, each a prompt and a completion, in evaluation mode and without gradients.

        They are cut into micro-batches here. Where rows share their prefix, a prompt that several sequences have is
        computed once for as many of them as the token budget takes.

        Args:
            model: The model the scorer was built on, wrapped or not.
            prompts: Token ids of each sequence's prompt.
            completions: Token ids of each sequence's completion.
            masks: Which tokens of each completion are scored, as in `PairBatch`.
            progress: Told the number of sequences after each micro-batch.

        Returns:
            Log-probabilities and lengths in the order of the sequences.

        Raises:
            DataError: If a prompt or a completion has no tokens.
        """
        for place, ids in enumerate(zip(prompts, completions, strict=True)):
            if not all(map(len, ids)):
                raise DataError(
                    f"sequence {place} has {len(ids[0])} prompt tokens and {len(ids[1])} completion tokens; at least "
                    "one of each is needed"
                )
        if self.shared:
            groups = group_by_prompt(prompts, completions, longest=self._budget(with_gradients=False))
        else:
            groups = [[place] for place in range(len(completions))]
        logps = torch.zeros(len(completions), dtype=torch.float64)
        masks = masks or [None] * len(completions)
        whole = PromptBatch(prompts, [[ids] for ids in completions], [[mask] for mask in masks])
        lengths = torch.tensor(scored_lengths(whole), dtype=torch.long).flatten()
        device = next(model.parameters()).device
        with inference(model):
            for start in range(0, len(groups), _PROMPTS_AT_ONCE):
                window = groups[start : start + _PROMPTS_AT_ONCE]
                batch = PromptBatch(
                    [prompts[group[0]] for group in window],
                    [[completions[place] for place in group] for group in window],
                    [[masks[place] for place in group] for group in window],
                )
                for part in self.plan(batch, with_gradients=False):
                    rows = self.rows(batch.select(part)).to(device)
                    places = [place for index in part for place in window[index]]
                    logps[places] = self._call(model, rows)["logps"].double().cpu()
                    if progress:
                        progress(len(places))
        return SequenceLogps(logps, lengths)

    def _activation_storage(self, model: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context that says where a forward pass keeps what its backward pass needs."""
        if self.config.offload_activations and torch.is_grad_enabled() and can_offload_from(device):
            return OffloadedActivations(model, device)
        return nullcontext()

    def live_reference(self, model: Any, rows: Rows, enter: Callable[[], Any]) -> LiveReference:
        """Run a reference on the policy's rows, for statistics that read its logits.

        Args:
            model: The reference, on which this scorer was built, or the policy with something switched off.
            rows: The policy's rows.
            enter: Makes the context in which ``model`` is the reference (adapter off, evaluation mode).

        Returns:
            Its states at the predicting positions, and the way to logits.
        """
        with torch.no_grad(), enter():
            seen = self._call(model, rows, states=True)
        if "logits" in seen:
            # A sharded head has given its outputs in the pass already; where the model gave them, they are logits.
            transform = self.transform if self.separate_head else LogitTransform()
            return LiveReference(seen["logits"], lambda logits: transform(logits))
        if "weight" in seen:
            weight, bias = seen["weight"], seen.get("bias")
            return LiveReference(seen["states"], lambda chunk: self.transform(F.linear(chunk, weight, bias)))
        head = causal_lm(model).get_output_embeddings()

        def logits(chunk: Tensor) -> Tensor:
            with nullcontext() if is_plain_linear(head) else enter():
                return self.transform(head(chunk))

        return LiveReference(seen["states"], logits)

    def self_check(self, model: nn.Module, pairs: PairBatch) -> None:
        """Score a few real pairs through the layout in use and through plain logits.

        Raises:
            ModelError: If they differ by more than rounding.
        """

        def score(batch: PairBatch) -> Tensor:
            rows = self.rows(batch).to(next(model.parameters()).device)
            return self._call(model, rows)["logps"]

        check_layouts_agree(model, pairs, score, layout=self.layout)
