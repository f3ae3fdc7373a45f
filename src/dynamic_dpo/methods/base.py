"""The seam between preference methods and everything else.

A method sees four log-probabilities a pair and whatever else it declares, gives a beta and losses, and owns
whatever state moves between updates. The trainer hands it all ranks' evidence, so that every rank holds the same
state. A new method subclasses `PreferenceMethod` and overrides what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from dynamic_dpo.errors import CheckpointError
from dynamic_dpo.methods.settings import Scope

# No torch at import, as in every module of a method: see `dynamic_dpo.methods.table`.
if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, Any]


class LogitChunk(NamedTuple):
    """What a token statistic is computed from: the logits of some completion tokens, without gradient.

    Attributes:
        policy: The policy's logits at the predicting positions, float32 or float64. Shape [n, V].
        reference: The reference's, where the statistic asks for them, else ``None``. Shape [n, V].
        targets: The completion tokens predicted there. Shape [n].
        logps: The policy's log-probabilities of the targets, nats. Shape [n].
    """

    policy: Tensor
    reference: Tensor | None
    targets: Tensor
    logps: Tensor


@dataclass(frozen=True)
class TokenStatistic:
    """A number per completion token that a method reads from logits; the engine adds it up per completion.

    Logits exist a chunk at a time, inside the output head: ``compute`` sees each chunk once and keeps nothing.

    Attributes:
        name: Key in `PairForward.statistics`.
        compute: From a chunk to one value a token, shape [n]; pure.
        live_reference: Whether it needs the reference's logits. They cost a forward pass of the reference in
            every micro-batch, since no store could hold them.
    """

    name: str
    compute: Callable[[LogitChunk], Tensor]
    live_reference: bool = False


@dataclass(frozen=True)
class PairForward:
    """What the engine gives for a batch of pairs; every tensor has shape [B] where nothing else is said.

    Attributes:
        policy_chosen_logps: Summed policy log-probabilities of the chosen completions, nats, with gradient.
        policy_rejected_logps: The same of the rejected completions.
        ref_chosen_logps: The reference's; zeros where the method needs no reference.
        ref_rejected_logps: The same of the rejected completions.
        chosen_lengths: Completion tokens behind each sum.
        rejected_lengths: The same of the rejected completions.
        statistics: Sums over completion tokens of the statistics in `Needs.statistics`, by name; chosen,
            rejected. No gradient. Shape [B, 2] each.
        token_logps: Policy log-probabilities of single completion tokens, with gradient, where
            `Needs.token_logps` asks for them. Shape [N].
        token_owners: The completion each token belongs to: ``2 i`` for pair i's chosen, ``2 i + 1`` for its
            rejected. Shape [N].
        router_loss: Balancing loss of a mixture of experts over the policy's rows, with gradient. Shape [].
        batch_lengths: Mean completion tokens, chosen and rejected, of the controller batch these pairs belong to, all
            ranks' pairs, where `Needs.batch_lengths` asks for them; ``None`` in evaluation. Shape [2].
        whole_chosen_logps: The chosen completions' summed policy log-probabilities as they are, with gradient, where
            the others are weighted (`Needs.tail_weight`) or rewritten; ``None`` where they are the same.
    """

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    token_logps: Tensor | None = None
    token_owners: Tensor | None = None
    router_loss: Tensor | None = None
    batch_lengths: Tensor | None = None
    whole_chosen_logps: Tensor | None = None

    @property
    def chosen_likelihood(self) -> Tensor:
        """Summed policy log-probabilities of the chosen completions, every token counted alike, nats. Shape [B]."""
        return self.policy_chosen_logps if self.whole_chosen_logps is None else self.whole_chosen_logps

    @property
    def margins(self) -> Tensor:
        """Chosen minus rejected log-ratio in nats, without beta. Shape [B]."""
        from dynamic_dpo.loss.dpo_loss import margin_compute

        return margin_compute(
            self.policy_chosen_logps,
            self.policy_rejected_logps,
            self.ref_chosen_logps,
            self.ref_rejected_logps,
        )

    @property
    def chosen_logratios(self) -> Tensor:
        """Policy minus reference log-probability of the chosen completions, nats. Shape [B]."""
        return self.policy_chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        """The same of the rejected completions. Shape [B]."""
        return self.policy_rejected_logps - self.ref_rejected_logps

    @property
    def length_normalised_margins(self) -> Tensor:
        """`margins` of log-ratios per completion token, nats a token. Shape [B]."""
        chosen = self.chosen_logratios / self.chosen_lengths
        return chosen - self.rejected_logratios / self.rejected_lengths

    def detached(self) -> PairForward:
        """Return the same values without gradient and without single tokens."""
        return replace(
            self,
            policy_chosen_logps=self.policy_chosen_logps.detach(),
            policy_rejected_logps=self.policy_rejected_logps.detach(),
            whole_chosen_logps=self.chosen_likelihood.detach(),
            token_logps=None,
            token_owners=None,
            router_loss=None,
        )


class Control(NamedTuple):
    """What a method decides for a batch of pairs, all of it without gradient.

    Attributes:
        beta: Shape [] or [B].
        weight: Factors on the losses. Shape [B].
        offset: What the loss wants the pair's difference to exceed, or else takes from the rest of the batch, for
            methods that decide on it. Shape [B], or [B, K] for several numbers a pair.
        parts: What further losses take from the rest of the batch, where several are added up.
    """

    beta: Tensor
    weight: Tensor
    offset: Tensor | None = None
    parts: tuple[Control, ...] = ()

    def select(self, index: Tensor) -> Control:
        """Return the control of the pairs at ``index`` (integers, shape [b]) of the batch."""
        return Control(
            self.beta if self.beta.ndim == 0 else self.beta[index],
            self.weight[index],
            None if self.offset is None else self.offset[index],
            tuple(part.select(index) for part in self.parts),
        )


@dataclass(frozen=True)
class Needs:
    """What a method asks of the engine, beyond summed policy log-probabilities.

    Attributes:
        reference: Whether reference log-probabilities are scored at all.
        batch_evidence: Whether `PreferenceMethod.control` and `couple` must see the whole controller batch, all
            ranks' pairs, before any loss of it is formed. It costs a second forward pass without gradients.
        statistics: What is to be read from logits, token by token.
        token_logps: Whether the log-probabilities of single tokens are handed on beside their sums.
        batch_lengths: Whether the mean lengths of the controller batch are handed on. They cost no pass, but the
            ranks' agreement on two numbers.
        tail_weight: Weight, in all sums of both models, of a completion's tokens beyond the length of the pair's
            shorter one. Statistics, single tokens and lengths are not weighted.
    """

    reference: bool = True
    batch_evidence: bool = False
    statistics: tuple[TokenStatistic, ...] = ()
    token_logps: bool = False
    batch_lengths: bool = False
    tail_weight: float = 1.0

    @property
    def live_reference(self) -> bool:
        """Whether the reference must be run in every micro-batch."""
        return any(statistic.live_reference for statistic in self.statistics)


@dataclass(frozen=True)
class BuildContext:
    """What a run's settings offer to the method that is built from them.

    Attributes:
        own: The method's settings, as `PreferenceMethod.Settings` takes them.
        beta_0: The run's beta, for methods that were given none of their own.
        scope: What a controller batch is, for methods that leave it to the run.
        pairs_per_update: Pairs in a controller batch of a given scope, over all ranks.
        loss: For methods that steer the beta of another: the method whose loss is steered.
        device_batch: Pairs that one device takes at once in scope ``micro``, where known.
    """

    own: Mapping[str, Any]
    beta_0: float
    scope: Scope
    pairs_per_update: Callable[[Scope], int]
    loss: PreferenceMethod | None = None
    device_batch: int | None = None

    def own_with_beta(self) -> dict[str, Any]:
        """Return ``own``, a ``beta`` of ``None`` replaced by the run's ``beta_0``."""
        own = dict(self.own)
        if "beta" in own and own["beta"] is None:
            own["beta"] = self.beta_0
        return own


class PreferenceMethod:
    """A preference method: fixed settings, one state, and the four calls the trainer makes in order.

    For each controller batch the trainer calls `evidence` and `control` (and `couple`, for methods that see whole
    batches), then `losses` for each micro-batch, and once, in training only, `observe`. The base class is complete
    but for `losses` and `beta`.

    Attributes:
        name: Name in `METHODS` and of the method's section of settings.
        Settings: Frozen dataclass of what a file says of the method, or ``None`` where it has nothing to say; its
            fields are made with `dynamic_dpo.utils.settings.setting`.
        neutral: Settings under which the method is plain DPO with its beta; ``None`` where none make it so.
        needs: What the engine must give. An attribute of the class, or of the object where settings decide.
        steers_beta: Whether `build` takes `BuildContext.loss`, a method whose beta this one moves.
        why_not_steered: Why no controller can move this method's beta; empty where one can.
        reads_margins: Whether the loss depends on log-ratios, or what stands in their place, at all.
        of_differences: Whether it reads the two log-ratios of a pair as a difference alone, from which a term that
            depends on the prompt drops out; other divergences than KL leave one.
        scope: What a controller batch is.
        stop_reason: Why the run should save and end after the present step; ``None``: it should go on.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Any] | None] = None
    neutral: ClassVar[Any] = None
    needs: Needs = Needs()
    steers_beta: ClassVar[bool] = False
    why_not_steered: ClassVar[str] = ""
    reads_margins: ClassVar[bool] = True
    of_differences: ClassVar[bool] = False
    scope: Scope = "step"
    stop_reason: str | None = None

    @classmethod
    def build(cls, context: BuildContext) -> Self:
        """Return the method as a run's settings describe it; by default ``cls(cls.Settings(**own))``.

        A setting ``beta`` of ``None`` becomes the run's ``beta_0``.
        """
        if cls.Settings is None:
            return cls()
        return cls(cls.Settings(**context.own_with_beta()))  # type: ignore[call-arg]

    @property
    def beta(self) -> float:
        """The beta that the next loss will use."""
        raise NotImplementedError

    def evidence(self, forward: PairForward) -> Tensor:
        """Return what the controller learns from: the margins, detached. Shape [B]."""
        return forward.margins.detach()

    def control(self, evidence: Tensor) -> Control:
        """Return beta and weights for the pairs behind ``evidence`` (shape [B]); changes no state."""
        return Control(evidence.new_tensor(self.beta), evidence.new_ones(evidence.shape))

    def control_in_evaluation(self, evidence: Tensor) -> Control:
        """Return beta and weights for pairs that are only evaluated; differs where `control` draws or selects."""
        return self.control(evidence)

    def couple(self, forward: PairForward, control: Control) -> Control:
        """Add to ``control`` what each pair's loss takes from the other pairs of its controller batch.

        Called in training only, after `control`, and only where `Needs.batch_evidence` asks for the whole batch; in
        evaluation each pair is a batch of its own. Changes no state.

        Args:
            forward: All ranks' pairs, without gradient and without single tokens. Shape [N] each.
            control: What was decided for them.
        """
        return control

    def losses(self, forward: PairForward, control: Control) -> Tensor:
        """Return the loss of each pair, with gradient. Shape [B]."""
        raise NotImplementedError

    def observe(self, evidence: Tensor) -> dict[str, float]:
        """Take in one controller batch, all ranks' pairs, and return what to log about the update.

        Non-finite evidence is left out; where nothing finite remains, the state stays as it is.
        """
        return {}

    def state_dict(self) -> State:
        """Return the whole state as JSON types; floats survive the round trip exactly."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: If the state is another method's or does not fit the settings.
        """

    def summary(self) -> dict[str, Any]:
        """Return what a run's record says of the method: at least its name."""
        return {"name": self.name}

    def start_notes(self, updates: int) -> list[str]:
        """Return sentences to print before a run of ``updates`` controller updates."""
        return []


def finite_margins(evidence: Tensor) -> Tensor:
    """Return the finite values of ``evidence`` as float32 on the CPU. Shape [≤ N]."""
    values = evidence.detach().cpu().float().reshape(-1)
    return values[values.isfinite()]


def check_state(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` naming the first identifying entry of ``state`` that differs from ``expected``."""
    for key, value in expected.items():
        if state.get(key) != value:
            raise CheckpointError(
                f"the saved controller state has {key} {state.get(key)!r}, this run has {value!r}: "
                "resume with the settings the checkpoint was made with, or start a new run"
            )
