"""A chat model as a judge: one template, one reply, one reading.

Asks through a `GPT4Oracle`'s server, whatever it was that the server was found to accept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamic_dpo.errors import ConfigError
from dynamic_dpo.eval.judges.base import Reply, conversation_text
from dynamic_dpo.eval.judges.gpt4_oracle import GPT4Oracle
from dynamic_dpo.eval.judges.labels import read_label
from dynamic_dpo.eval.judges.quotations import as_written, own_words, read_judgement
from dynamic_dpo.eval.judges.template import (
    LABEL_SETS,
    VERDICT_SCHEMA,
    JudgeTemplate,
    file_template,
    judge_template,
)
from dynamic_dpo.eval.judges.token_probs import verdict_probabilities
from dynamic_dpo.eval.judges.verdict import Verdict
from dynamic_dpo.eval.records import PromptRecord


class OracleJudge:
    """A `Judge` that asks a chat model.

    Args:
        oracle: Model, server, temperature and length of a reply. Its seed and order are not used: the questions come
            in the order in which they are to be shown.
        template: How to ask; ``None`` for the oracle's own two prompts.
        json_schema: Whether to ask for a JSON object by a schema, where the server supports one.
        logprobs: Whether the verdict is the likeliest one by the log-probabilities of the verdict's token, where the
            server gives them, and not the one that was sampled.
        max_attempts: How often a question is asked until its verdict is valid.
        name: What reports call the judge; ``None`` for the model's name.

    Raises:
        ConfigError: If ``max_attempts`` is below 1, or JSON or log-probabilities are asked for with a template that
            is answered by a label.

    Example:
        >>> judge = OracleJudge(GPT4Oracle("a-judge"))
        >>> judge.fingerprint()["model"], judge.fingerprint()["template"]
        ('a-judge', 'custom')
    """

    def __init__(
        self,
        oracle: GPT4Oracle,
        *,
        template: JudgeTemplate | None = None,
        json_schema: bool = False,
        logprobs: bool = False,
        max_attempts: int = 3,
        name: str | None = None,
    ) -> None:
        if max_attempts < 1:
            raise ConfigError(f"judge.max_attempts must be at least 1, got {max_attempts}")
        self.oracle = oracle
        self.template = oracle.template if template is None else template
        for key, is_asked in (("json_schema", json_schema), ("logprobs", logprobs)):
            if is_asked and self.template.labels:
                raise ConfigError(
                    f"judge.{key} has no effect with the template {self.template.version}, which is answered by a "
                    "label: leave it out"
                )
        self.json_schema = json_schema
        self.logprobs = logprobs
        self.max_attempts = max_attempts
        self.name = oracle.model if name is None else name

    def fingerprint(self) -> dict[str, Any]:
        """Return what the verdicts depend on; not the server's address, which may change under a model."""
        return {
            "kind": "openai",
            "model": self.oracle.model,
            "temperature": self.oracle.temperature,
            "max_tokens": self.oracle.max_tokens,
            "template": self.template.version,
            "template_sha256": self.template.sha256,
            "json_schema": self.json_schema,
            "logprobs": self.logprobs,
        }

    def ask(self, prompt: PromptRecord, first: str, second: str, *, attempt: int = 0) -> Reply:
        """Ask once; see `Judge.ask`.

        Raises:
            JudgeError: If the server refuses the question, sends no usable reply, or a passing fault outlasts the
                retries.
        """
        text = conversation_text(prompt.messages)
        completion = self.oracle.server.complete(
            lambda as_json: self.template.messages(
                text, first, second, as_json=as_json, attempt=attempt, category=prompt.category
            ),
            temperature=self.oracle.temperature,
            max_tokens=self.oracle.max_tokens,
            schema=VERDICT_SCHEMA if self.json_schema else None,
            logprobs=self.logprobs,
        )
        usage = completion.usage or (0, 0)
        if completion.cut:
            # "Verdict: A" may have been going on with "or B".
            return Reply(Verdict.INVALID, completion.text, None, *usage)
        shown = (text, first, second)
        if self.template.labels:
            words = own_words(completion.text, shown)
            found = read_label(words, LABEL_SETS[self.template.labels])
            reason = as_written(found.reason, words, completion.text)
            return Reply(found.verdict, reason, None, *usage, strong=found.strong)
        reading = read_judgement(completion.text, shown)
        verdict = reading.verdict
        probs = verdict_probabilities(completion.text, completion.tokens, reading) if self.logprobs else None
        if probs is not None:
            # Of equally likely verdicts the one that was written stands.
            verdict = max(probs, key=lambda label: (probs[label], label is reading.verdict))
        if probs is None:
            return Reply(verdict, reading.reason, None, *usage)
        return Reply(verdict, reading.reason, probs[Verdict.A], *usage, prob_tie=probs[Verdict.TIE])

    def close(self) -> None:
        """Give the server's connections back."""
        self.oracle.server.close()


def openai_judge(
    *,
    gpt4_oracle: Mapping[str, Any],
    base_url: str | None,
    template: str,
    template_file: str | None,
    max_invalid_retries: int,
    logprobs: bool,
    json_schema: bool,
) -> OracleJudge:
    """Return the judge that ``judge.kind: openai`` means.

    Args:
        gpt4_oracle: Arguments of `GPT4Oracle`.
        base_url: Address of the server; ``None``: OpenAI's own.
        template: Name of a template of the package; ``custom`` for the file or the oracle's own two prompts.
        template_file: File of a template; ``None`` for none.
        max_invalid_retries: How often a question is asked again whose reply holds no verdict.
        logprobs: See `OracleJudge`.
        json_schema: See `OracleJudge`.

    Raises:
        ConfigError: If the template cannot be had, or a setting is out of range.
    """
    asked = file_template(template_file) if template_file is not None else None
    return OracleJudge(
        GPT4Oracle(**gpt4_oracle, base_url=base_url),
        template=asked if template == "custom" else judge_template(template),
        json_schema=json_schema,
        logprobs=logprobs,
        max_attempts=1 + max_invalid_retries,
    )
