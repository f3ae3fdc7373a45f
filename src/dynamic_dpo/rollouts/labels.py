"""Labels of either kind, behind one face: asked for by the stage label, read back by the stage pair.

What asks is in `rollouts.scores` and `dynamic_dpo.eval.judging`; here stands which answers are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from dynamic_dpo.eval.judging.ledger import JudgeLedger, read_ledger
from dynamic_dpo.eval.judging.questions import Question, answers_to
from dynamic_dpo.eval.judging.stage import run_judging
from dynamic_dpo.eval.records import JudgementRecord, PromptRecord
from dynamic_dpo.rollouts.answers import Answer, reference_answer
from dynamic_dpo.rollouts.comparisons import Labelled, compared, meetings, questions_about
from dynamic_dpo.rollouts.filters import Usable, usable_answers
from dynamic_dpo.rollouts.folder import LabelNote, RolloutFolder
from dynamic_dpo.rollouts.plan import Comparing, Scoring
from dynamic_dpo.rollouts.samples import Samples
from dynamic_dpo.rollouts.scores import read_scores, scored, write_scores


class Labels(NamedTuple):
    """What labelling has come to.

    Attributes:
        judge: Name of the judge, or of the scorers; ``None`` where nobody labels.
        of: Gives a prompt's usable answers their scores.
        fingerprints: All that labels depend on, by name.
        judgements: Every verdict that counts, with the answers' names; empty without a judge.
    """

    judge: str | None
    of: Callable[[PromptRecord, Sequence[Answer]], Labelled]
    fingerprints: Mapping[str, Mapping[str, Any]]
    judgements: Sequence[JudgementRecord] = ()


def usable_of(folder: RolloutFolder, samples: Samples, prompt: PromptRecord) -> Usable:
    """Return the answers to a prompt that may stand in a pair, the data set's own first where it takes part."""
    answers = samples.of(prompt)
    reference = reference_answer(prompt) if folder.plan.needs_reference else None
    if reference is not None:
        answers = [reference, *answers]
    return usable_answers(prompt.id, answers, folder.plan.filters)


def write_labels(folder: RolloutFolder) -> str | None:
    """Get every label that is missing.

    Returns:
        Which limit of the judge's budget ended it, in words; ``None`` where every label is there.

    Raises:
        ConfigError: If prompts are missing, or a setting cannot be carried out.
        JudgeError: If scorer or judge fail; what is there stays.
        Interrupted: If a signal asked to stop; what was under way is kept.
    """
    labels = folder.plan.labels
    if labels is None:
        folder.put_labels(LabelNote({}))
        return None
    prompts = folder.prompts()
    samples = folder.samples(prompts)
    if isinstance(labels, Comparing):
        return _write_verdicts(folder, labels, prompts, samples)
    fingerprints = {}
    for name, weighted in labels.scorers.items():
        scorer = weighted.make()
        write_scores(
            prompts,
            lambda prompt: usable_of(folder, samples, prompt).answers,
            name,
            scorer,
            folder.scores_path,
            progress=folder.plan.progress,
        )
        fingerprints[name] = scorer.fingerprint()
    folder.put_labels(LabelNote(fingerprints))
    return None


def read_labels(folder: RolloutFolder, prompts: Sequence[PromptRecord], samples: Samples) -> Labels:
    """Return the labels that are there; asks nobody.

    Raises:
        ConfigError: If the stage label has not run, or with other settings.
        DataError: If a file is damaged.
    """
    labels, note = folder.plan.labels, folder.labels_note()
    if labels is None:
        return Labels(None, lambda prompt, answers: Labelled(list(answers), []), {})
    if isinstance(labels, Comparing):
        return _verdicts(folder, labels, note, prompts, samples)
    return _scores(folder, labels, note)


def _scores(folder: RolloutFolder, scoring: Scoring, note: LabelNote) -> Labels:
    found = read_scores(folder.scores_path) if folder.scores_path.is_file() else {}
    weights = {name: weighted.weight for name, weighted in scoring.scorers.items()}

    def label(prompt: PromptRecord, answers: Sequence[Answer]) -> Labelled:
        return Labelled(scored(prompt, answers, note.fingerprints, weights, found), [])

    return Labels(", ".join(weights), label, note.fingerprints)


def _write_verdicts(
    folder: RolloutFolder, comparing: Comparing, prompts: Sequence[PromptRecord], samples: Samples
) -> str | None:
    plan, judging = folder.plan, comparing.judging
    questions = [
        question for prompt in prompts for question in _questions(folder, comparing, samples, prompt)
    ]
    judge = judging.make_judge()
    with ExitStack() as stack:
        if hasattr(judge, "close"):
            stack.callback(judge.close)
        ledger = stack.enter_context(JudgeLedger(folder.judgements_path))
        # Noted first: pairs of a run that was killed later find its verdicts by it.
        note = LabelNote({judge.name: judge.fingerprint()})
        folder.put_labels(note)
        outcome = run_judging(
            questions,
            judge,
            ledger,
            concurrency=judging.concurrency,
            budget=judging.budget,
            progress=plan.progress,
        )
    folder.put_labels(note._replace(stopped=outcome.stopped))
    return outcome.stopped


def _verdicts(
    folder: RolloutFolder,
    comparing: Comparing,
    note: LabelNote,
    prompts: Sequence[PromptRecord],
    samples: Samples,
) -> Labels:
    ((name, fingerprint),) = note.fingerprints.items()
    path = folder.judgements_path
    found = {record.key: record for record in read_ledger(path)} if path.is_file() else {}
    with_reference = folder.plan.needs_reference
    by_prompt: dict[str, dict[tuple[str, str], JudgementRecord]] = {}
    judgements: list[JudgementRecord] = []
    for prompt in prompts:
        asked = _questions(folder, comparing, samples, prompt)
        answered = answers_to(asked, found.get, judge=name, fingerprint=fingerprint).records
        by_prompt[prompt.id] = {(record.first, record.second): record for record in answered}
        judgements += answered

    def label(prompt: PromptRecord, answers: Sequence[Answer]) -> Labelled:
        met = meetings(prompt.id, answers, comparing, with_reference=with_reference)
        return compared(prompt.id, answers, met, by_prompt[prompt.id], with_reference=with_reference)

    return Labels(name, label, note.fingerprints, judgements)


def _questions(
    folder: RolloutFolder, comparing: Comparing, samples: Samples, prompt: PromptRecord
) -> list[Question]:
    answers = usable_of(folder, samples, prompt).answers
    met = meetings(prompt.id, answers, comparing, with_reference=folder.plan.needs_reference)
    return questions_about(prompt, met)
