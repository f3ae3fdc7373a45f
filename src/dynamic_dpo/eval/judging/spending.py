"""How much a judge may be asked: calls, tokens, money, counted while several threads ask.

A call is admitted before it is made and settled when its reply is there.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dynamic_dpo.errors import ConfigError


class Spending(NamedTuple):
    """What replies have cost.

    Attributes:
        calls: Replies, invalid ones included.
        prompt_tokens: Tokens of the questions.
        completion_tokens: Tokens of the replies.
        cost: Money by the price table, in its currency.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of questions and replies."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Spending) -> Spending:
        """Return the sum of both, field by field.

        >>> Spending(1, 10, 2, 0.5).plus(Spending(1, 20, 3, 0.25))
        Spending(calls=2, prompt_tokens=30, completion_tokens=5, cost=0.75)
        """
        return Spending(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )


@dataclass(frozen=True)
class Price:
    """Price of one model per million tokens, in any one currency.

    Raises:
        ConfigError: If a price is negative or not a number.
    """

    input: float
    output: float

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"judge.prices: {name} must be at least 0, got {value}")

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what these tokens cost.

        >>> Price(input=2.5, output=10.0).of(1_000_000, 100_000)
        3.5
        """
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Budget:
    """Limits on everything that one file of judgements has cost, earlier runs included; ``None``: no limit.

    Args:
        calls: Replies.
        tokens: Tokens of questions and replies together.
        money: In the currency of the prices.
        prices: Price of each judging model by its name.

    Raises:
        ConfigError: If a limit is negative or not a number.
    """

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("calls", "tokens", "money"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"judge.budget.{name} must be at least 0 or null, got {value}")


class BudgetMeter:
    """Admits calls while they fit the budget; several threads may use one.

    What a reply will cost is known only afterwards. A call is therefore admitted if the budget still holds when it
    and all calls under way cost as much as the dearest reply so far; before the first reply, one call goes alone.

    Args:
        budget: The limits.
        model: Name under which replies are priced; ``None`` for a judge that costs nothing.
        spent: What the file's replies have cost so far.
        dearest: The dearest single reply so far, field by field.

    Raises:
        ConfigError: If money is limited and the model has no price.
    """

    def __init__(
        self, budget: Budget, model: str | None, spent: Spending, dearest: Spending | None = None
    ) -> None:
        if budget.money is not None and model is not None and model not in budget.prices:
            raise ConfigError(
                f"judge.budget.money is set, but judge.prices has no price for {model!r} (it has "
                f"{', '.join(sorted(budget.prices)) or 'none'}); add its input and output price per million tokens"
            )
        self.budget = budget
        self.spent = spent
        self.stopped: str | None = None
        self._price = budget.prices.get(model, Price(0, 0)) if model is not None else Price(0, 0)
        self._needs_counts = model is not None and (budget.tokens is not None or budget.money is not None)
        self._dearest = dearest
        self._under_way = 0
        self._closed = False
        self._changed = threading.Condition()

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return what a reply of so many tokens costs."""
        return self._price.of(prompt_tokens, completion_tokens)

    def admit(self) -> bool:
        """Return whether one more call may be made; waits while calls under way leave that open.

        After the first refusal every answer is ``False``, and `stopped` says which limit it was.
        """
        return self.admit_up_to(1) == 1

    def admit_up_to(self, calls: int) -> int:
        """Return how many of so many calls, made together, may be made; waits while that may still be none."""
        with self._changed:
            while self.stopped is None and not self._closed:
                admitted = 0
                limit = self._limit_passed_by(self._under_way + 1)
                while limit is None and admitted < calls:
                    admitted += 1
                    limit = self._limit_passed_by(self._under_way + admitted + 1)
                if admitted:
                    self._under_way += admitted
                    return admitted
                if self._under_way == 0:
                    self.stopped = limit
                    self._changed.notify_all()
                else:
                    self._changed.wait()
            return 0

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the reply of an admitted call.

        Raises:
            ConfigError: If tokens or money are limited and the reply's tokens were not counted.
        """
        cost = self.cost(prompt_tokens, completion_tokens)
        reply = Spending(1, prompt_tokens, completion_tokens, cost)
        with self._changed:
            self.spent = self.spent.plus(reply)
            known = self._dearest or Spending()
            self._dearest = Spending(
                1,
                max(known.prompt_tokens, prompt_tokens),
                max(known.completion_tokens, completion_tokens),
                max(known.cost, cost),
            )
            self._under_way -= 1
            self._changed.notify_all()
        if self._needs_counts and reply.tokens == 0:
            raise ConfigError(
                "judge.budget limits tokens or money, but the judge's server does not say how many tokens a reply "
                "took; limit judge.budget.calls instead"
            )

    def close(self) -> None:
        """Admit nothing more, for a reason that is none of the budget's."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def withdraw(self) -> None:
        """Take back an admitted call that brought no reply."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _limit_passed_by(self, calls: int) -> str | None:
        """Return the limit that so many more calls may pass, in words."""
        budget, spent = self.budget, self.spent
        if budget.calls is not None and spent.calls + calls > budget.calls:
            return f"budget of {budget.calls} calls: {spent.calls} made"
        if not self._needs_counts:
            return None
        reply = self._dearest or Spending()
        # Nothing is known of a first reply's size, so it may not have company.
        first_has_company = self._dearest is None and calls > 1
        if budget.tokens is not None:
            needed = spent.tokens + calls * reply.tokens
            if first_has_company or needed > budget.tokens or spent.tokens >= budget.tokens:
                return f"budget of {budget.tokens} tokens: {spent.tokens} used, and a reply may take {reply.tokens}"
        if budget.money is not None:
            price = spent.cost + calls * reply.cost
            if (
                first_has_company
                or price > budget.money
                or (spent.cost >= budget.money and self._price != Price(0, 0))
            ):
                return f"budget of {budget.money:g}: {spent.cost:.4g} spent, and a reply may cost {reply.cost:.2g}"
        return None
