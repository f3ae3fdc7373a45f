"""One model of an evaluation as its file names it: where it is and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass

from dynamic_dpo.eval.prompts.render import PromptFormat
from dynamic_dpo.models.adapters import ModelFiles, find_model


@dataclass(frozen=True)
class ModelSpec:
    """A model as the evaluation file names it.

    Attributes:
        name: Its name in the evaluation.
        path: Hub name, folder, ``.gguf`` file, ``package:NAME``, or the folder of a LoRA adapter.
        revision: Branch, tag or commit on the hub.
        prompt_template: Text around the prompt, given as ``{prompt}``.
        prompt_format: Chat messages, plain text, or what the tokenizer can do.
    """

    name: str
    path: str
    revision: str | None = None
    prompt_template: str | None = None
    prompt_format: PromptFormat = "auto"

    def find_files(self) -> ModelFiles:
        """Find the model's files, fetching those of a hub name that are not in the cache.

        Raises:
            ModelError: If there is no such model, or an adapter names no base.
            ConfigError: If a revision is given for a local model, where it would have no effect.
        """
        return find_model(self.path, revision=self.revision, setting=f"models.{self.name}.revision")
