"""A pairwise judge behind any server that speaks OpenAI's chat protocol.

One question at a time: the two outputs in an order drawn from the seed and the item, the reply read strictly,
faults that may pass retried and no others. `chat_judge` makes of it a `Judge` for a whole evaluation.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.chat.server import QUESTION_DEADLINE, REQUEST_TIMEOUT, ChatServer, Usage
from dynamic_dpo.eval.judges.quotations import read_judgement
from dynamic_dpo.eval.judges.template import custom_template, fill
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.servers.retry import RetryPolicy


class Judgement(NamedTuple):
    """One verdict on outputs A and B.

    Attributes:
        verdict: In the caller's terms: the order in which the judge saw the outputs is undone.
        swapped: Whether the judge saw output B first.
        reply: The judge's whole reply.
        usage: Tokens used, ``None`` where the server does not say.
        item_id: What was judged.
    """

    verdict: Verdict
    swapped: bool
    reply: str
    usage: Usage | None
    item_id: str


class GPT4Oracle:
    """Ask a chat model which of two outputs answers a prompt better.

    The key comes from the environment (``OPENAI_API_KEY``) and from nowhere else. The ``openai`` package is
    imported when the first question is asked. A model that wants ``max_completion_tokens`` or refuses a
    temperature gets what it wants.

    Args:
        model: Name of the judging model.
        temperature: Sampling temperature of the judge, at least 0.
        max_tokens: Longest reply in tokens, reasons included.
        randomize_order: Whether half the items, drawn by hash of seed and item, are shown as B, A.
        seed: Seed of that order.
        max_retries: How often a question is repeated after a fault that may pass (429, 5xx, time-out,
            broken connection, broken JSON).
        initial_backoff: Seconds before the first repetition; doubles with each. A server's Retry-After
            counts instead where it gives one.
        max_backoff: Longest wait of our own choice, in seconds.
        timeout: Seconds that one attempt may take, however slowly its reply drips.
        deadline: Seconds that one question may take, with all its attempts and waits. A server that asks to wait
            longer is not waited for.
        system_prompt: What the judge is and what counts for it; ``None``: that of `template.DEFAULT_TEMPLATE`.
        prompt_template: The question, with the places ``{prompt}``, ``{output_a}`` and ``{output_b}``; must
            ask for a last line ``Verdict: A``, ``Verdict: B`` or ``Verdict: tie``. ``None``: that of
            `template.DEFAULT_TEMPLATE`.
        base_url: Address of another server with the same protocol.
        client: A ready ``openai.OpenAI`` client to use instead; set its own ``max_retries`` to 0.

    Raises:
        ConfigError: If a setting is out of range or the template lacks a place.

    Example:
        >>> oracle = GPT4Oracle(model="a-judge", seed=3)
        >>> oracle.shows_b_first("post 1") == oracle.shows_b_first("post 1")
        True
    """

    def __init__(
        self,
        model: str = "gpt-4o",
        *,
        temperature: float = 0.0,
        max_tokens: int = 512,
        randomize_order: bool = True,
        seed: int = 42,
        max_retries: int = 5,
        initial_backoff: float = 1.0,
        max_backoff: float = 60.0,
        timeout: float = REQUEST_TIMEOUT,
        deadline: float = QUESTION_DEADLINE,
        system_prompt: str | None = None,
        prompt_template: str | None = None,
        base_url: str | None = None,
        client: Any = None,
    ) -> None:
        if temperature < 0:
            raise ConfigError(f"gpt4_oracle.temperature must be at least 0, got {temperature}")
        if max_tokens < 1:
            raise ConfigError(f"gpt4_oracle.max_tokens must be at least 1, got {max_tokens}")
        if not 0 < timeout <= deadline:
            raise ConfigError(
                f"gpt4_oracle.timeout must lie between 0 and deadline ({deadline}), got {timeout}"
            )
        self.template = custom_template(system_prompt, prompt_template)
        self.model = model
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.randomize_order = randomize_order
        self.seed = seed
        self.system_prompt = self.template.system
        self.prompt_template = self.template.question
        self.base_url = base_url
        # An attempt that begins in time ends in time.
        self.retry = RetryPolicy(max_retries, initial_backoff, max_backoff, deadline=deadline - timeout)
        self.server = ChatServer(model, self.retry, base_url=base_url, timeout=timeout, client=client)

    def judge(self, prompt: str, output_a: str, output_b: str, item_id: str | None = None) -> Judgement:
        """Ask which output answers ``prompt`` better.

        Args:
            prompt: The request, as text.
            output_a: One answer.
            output_b: The other answer.
            item_id: Name of the item, which decides the order; by default a hash of the three texts.

        Returns:
            The judgement; its verdict is `Verdict.INVALID` where the reply holds none in the form asked for.

        Raises:
            JudgeError: If the server refuses the question, sends no usable reply, or a passing fault
                outlasts the retries.
        """
        item = content_id(prompt, output_a, output_b) if item_id is None else item_id
        swapped = self.shows_b_first(item)
        first, second = (output_b, output_a) if swapped else (output_a, output_b)
        completion = self.server.complete(
            lambda as_json: self.template.messages(prompt, first, second, as_json=as_json),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
        )
        verdict = read_judgement(completion.text, (prompt, first, second)).verdict
        return Judgement(
            verdict.swapped() if swapped else verdict, swapped, completion.text, completion.usage, item
        )

    def shows_b_first(self, item_id: str) -> bool:
        """Return whether the judge sees output B of this item first."""
        digest = hashlib.sha256(f"{self.seed}\n{item_id}".encode()).digest()
        return self.randomize_order and bool(digest[0] & 1)

    def question(self, prompt: str, first: str, second: str) -> str:
        """Return the question's text; braces in prompt or outputs stay what they are.

        >>> GPT4Oracle(prompt_template="{prompt}|{output_a}|{output_b}").question("{output_b}?", "{x}", "y")
        '{output_b}?|{x}|y'
        """
        return fill(self.prompt_template, prompt, first, second)


def content_id(prompt: str, output_a: str, output_b: str) -> str:
    """Return a name for an item that depends on its content alone.

    >>> content_id("p", "a", "b") == content_id("p", "ab", "")
    False
    """
    lengths = f"{len(prompt)} {len(output_a)} {len(output_b)}\n"
    return hashlib.sha256(
        (lengths + prompt + output_a + output_b).encode("utf-8", "surrogatepass")
    ).hexdigest()
