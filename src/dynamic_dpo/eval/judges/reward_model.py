"""A reward model as a judge: a sequence classifier with one output reads prompt and output through its template.

The model is loaded when the first output is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamic_dpo.errors import ConfigError, DataError, ModelError
from dynamic_dpo.eval.judges.base import PointwiseJudge, conversation_text
from dynamic_dpo.eval.records import PromptRecord
from dynamic_dpo.models.sources import SAFE_LOADING, ModelSource, file_fingerprint, resolve_model
from dynamic_dpo.utils.hashing import content_hash


class RewardModelScorer:
    """Score outputs with a reward model; `PointwiseJudge` makes a judge of it.

    Conversation and output are rendered by the tokenizer's chat template, or without one as plain text with roles.
    Models without a padding token read one output at a time.

    Args:
        path: Hub name or folder of a sequence classifier with one label.
        revision: Branch, tag or commit on the hub; ``None`` for the default.
        batch_size: Outputs scored side by side.
        device: ``cuda``, ``cpu`` …; ``auto``: a GPU where there is one.

    Raises:
        ConfigError: If ``batch_size`` is below 1.

    Example:
        >>> RewardModelScorer("org/reward-model", batch_size=0)
        Traceback (most recent call last):
        dynamic_dpo.errors.ConfigError: judge.batch_size must be at least 1, got 0
    """

    def __init__(
        self, path: str, *, revision: str | None = None, batch_size: int = 16, device: str = "auto"
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"judge.batch_size must be at least 1, got {batch_size}")
        self.path = path
        self.revision = revision
        self.batch_size = batch_size
        self.device = device
        self.name = path.rstrip("/").rpartition("/")[2]
        self._loaded: tuple[Any, Any] | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Return hashes of weights and template, so that a retrained model under the same name scores anew.

        Raises:
            ModelError: If the model cannot be loaded.
        """
        source = resolve_model(self.path)
        weights = None
        if not Path(source.location).is_dir():
            # Loading puts the files of a hub name where they can be hashed; a revision is known by its commit.
            model, _ = self._load()
            weights = getattr(model.config, "_commit_hash", None) if self.revision else None
        return {
            "kind": "reward_model",
            "weights": weights or file_fingerprint(source),
            "template": content_hash(getattr(self._load_tokenizer(source), "chat_template", None)),
        }

    def score(self, prompt: PromptRecord, text: str) -> float:
        """Return the reward of one output."""
        return self.score_many([(prompt, text)])[0]

    def score_many(self, items: Sequence[tuple[PromptRecord, str]]) -> list[float]:
        """Return the rewards of several outputs, in their order.

        Raises:
            ModelError: If the model cannot be loaded or is no reward model.
            DataError: If a conversation is longer than the model can read.
        """
        import torch

        model, tokenizer = self._load()
        rows = [self._render(tokenizer, prompt, text) for prompt, text in items]
        limit = getattr(model.config, "max_position_embeddings", None)
        for (prompt, _), row in zip(items, rows, strict=True):
            if limit is not None and len(row) > limit:
                raise DataError(
                    f"prompt {prompt.id} with its output has {len(row)} tokens, but the reward model {self.name} "
                    f"reads {limit}; leave such prompts out, or use a model that reads more"
                )
        pad = model.config.pad_token_id
        batch_size = self.batch_size if pad is not None else 1
        # Like lengths side by side waste no padding.
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        scores = [0.0] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                numbers = order[start : start + batch_size]
                width = max(len(rows[number]) for number in numbers)
                # On the right: the classifier reads the last token that is no padding.
                ids = [rows[number] + [pad] * (width - len(rows[number])) for number in numbers]
                mask = [[1] * len(rows[n]) + [0] * (width - len(rows[n])) for n in numbers]
                logits = model(
                    input_ids=torch.tensor(ids, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                ).logits
                for number, value in zip(numbers, logits[:, 0].float().tolist(), strict=True):
                    scores[number] = value
        return scores

    def _render(self, tokenizer: Any, prompt: PromptRecord, text: str) -> list[int]:
        messages = [*prompt.messages, {"role": "assistant", "content": text}]
        if getattr(tokenizer, "chat_template", None):
            rendered = tokenizer.apply_chat_template(messages, tokenize=False)
            # The template has written the special tokens; the tokenizer must not add them again.
            return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return list(tokenizer(conversation_text(messages))["input_ids"])

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoConfig, AutoModelForSequenceClassification

            source = resolve_model(self.path)
            how = {**source.load_kwargs, **self._revision, **SAFE_LOADING}
            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            dtype = "auto" if device.startswith("cuda") else torch.float32
            try:
                _check_is_a_reward_model(self.path, AutoConfig.from_pretrained(source.location, **how))
                load = AutoModelForSequenceClassification.from_pretrained
                model = load(source.location, dtype=dtype, **how)
            except ModelError:
                raise
            except (OSError, ValueError) as error:
                raise ModelError(f"reward model {self.path!r} cannot be loaded: {error}") from error
            self._loaded = model.to(device).eval(), self._load_tokenizer(source)
        return self._loaded

    def _load_tokenizer(self, source: ModelSource) -> Any:
        from transformers import AutoTokenizer

        try:
            how = {**source.load_kwargs, **self._revision, **SAFE_LOADING}
            return AutoTokenizer.from_pretrained(source.location, **how)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the tokenizer of reward model {self.path!r} cannot be loaded: {error}"
            ) from error

    @property
    def _revision(self) -> dict[str, str]:
        return {"revision": self.revision} if self.revision else {}


def reward_model_judge(
    *, reward_model: str, batch_size: int, tie_tolerance: float, device: str
) -> PointwiseJudge:
    """Return the judge that ``judge.kind: reward_model`` means.

    Args:
        reward_model: Hub name or folder, see `RewardModelScorer`.
        batch_size: Outputs scored side by side.
        tie_tolerance: See `PointwiseJudge`.
        device: ``cuda``, ``cpu`` …; ``auto``: a GPU where there is one.

    Raises:
        ConfigError: If a number is out of range.
    """
    scorer = RewardModelScorer(reward_model, batch_size=batch_size, device=device)
    return PointwiseJudge(scorer, tie_tolerance=tie_tolerance)


def _check_is_a_reward_model(path: str, config: Any) -> None:
    names = getattr(config, "architectures", None) or []
    if config.num_labels != 1 or not any("SequenceClassification" in name for name in names):
        # transformers would give a language model a fresh, random head and go on.
        raise ModelError(
            f"{path!r} is no reward model: expected a sequence classifier with 1 label, found "
            f"{', '.join(names) or 'no architecture'} with {config.num_labels} labels"
        )
