"""The answers that models have written, found by prompt: what is held is where they stand, not what they say.

Memory therefore does not grow with the length of the answers, and the order of the file is of no account.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dynamic_dpo.eval.generate.ready import WrittenModel, is_ready, ready_outputs
from dynamic_dpo.eval.model_spec import ModelSpec
from dynamic_dpo.eval.records import OutputRecord, PromptRecord
from dynamic_dpo.rollouts.answers import Answer
from dynamic_dpo.utils.json_lines import iter_json_lines, read_row


class Samples:
    """The answers of the models of a rollout.

    Args:
        path: The file of outputs.
        models: The models.
        written: What identifies each model's outputs, by its name.
        prompts: The prompts, for models whose outputs are there already.
        num_samples: Answers a prompt.

    Attributes:
        left_out: Model and prompt id to why there is no answer.

    Raises:
        DataError: If a file cannot be read or is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        models: Sequence[ModelSpec],
        written: Mapping[str, WrittenModel],
        prompts: Sequence[PromptRecord],
        num_samples: int,
    ) -> None:
        self.path = path
        self.models = [model.name for model in models]
        self.left_out: dict[tuple[str, str], str] = {}
        self._num_samples = num_samples
        self._places: dict[tuple[str, str], dict[int, tuple[int, int]]] = {}
        self._ready: dict[tuple[str, str], list[OutputRecord]] = {}
        # Two models may be the same: then the same lines are both models' answers.
        by_fingerprint: dict[str, list[str]] = {}
        for model in models:
            if is_ready(model):
                self._take_ready(model, prompts)
            else:
                by_fingerprint.setdefault(written[model.name].fingerprint, []).append(model.name)
        if by_fingerprint and Path(path).is_file():
            self._find(by_fingerprint, {prompt.id for prompt in prompts})

    def of(self, prompt: PromptRecord) -> list[Answer]:
        """Return a prompt's answers, in the order of models and samples."""
        answers = []
        for model in self.models:
            for sample, (start, end) in sorted(self._places.get((model, prompt.id), {}).items()):
                row = read_row(self.path, start, end)
                record = OutputRecord.from_json({**row, "model": model, "sample": sample})
                ids, stop_id = row.get("token_ids"), row.get("stop_token_id")
                answers.append(Answer.of(record, token_ids=ids, stop_id=stop_id))
            answers += map(Answer.of, self._ready.get((model, prompt.id), []))
        return answers

    def missing(self, prompt: PromptRecord) -> list[str]:
        """Return the names of the models that have not written all their answers to a prompt, and could have."""
        written = {model: len(self._places.get((model, prompt.id), {})) for model in self.models}
        return [
            model
            for model, number in written.items()
            if number < self._num_samples
            and (model, prompt.id) not in self._ready
            and (model, prompt.id) not in self.left_out
        ]

    def _find(self, by_fingerprint: Mapping[str, list[str]], ids: set[str]) -> None:
        for row, start, end in iter_json_lines(self.path):
            id_ = row.get("id")
            if id_ not in ids:
                continue
            for model in by_fingerprint.get(row.get("fingerprint", ""), []):
                if "left_out" in row:
                    self.left_out[model, id_] = row["left_out"]
                elif row["sample"] < self._num_samples:
                    # Of two lines about one sample the first counts, as everywhere.
                    self._places.setdefault((model, id_), {}).setdefault(row["sample"], (start, end))

    def _take_ready(self, model: ModelSpec, prompts: Sequence[PromptRecord]) -> None:
        found = ready_outputs(model, prompts)
        for output in found.outputs:
            if output.sample < self._num_samples:
                self._ready.setdefault((model.name, output.id), []).append(output)
        self.left_out.update({(model.name, id_): why for id_, why in found.left_out.items()})
