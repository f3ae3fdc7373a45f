"""Our files and numbers beside those of the ``alpaca_eval`` package, in an environment of its own.

``make test-alpaca-eval`` makes that environment and runs this; ``ALPACA_EVAL_PYTHON`` names the interpreter of
another one.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamic_dpo.eval.exchange import (
    export_alpaca_annotations,
    export_alpaca_outputs,
    import_alpaca_annotations,
)
from dynamic_dpo.eval.judges.chat.server import Token
from dynamic_dpo.eval.judges.token_choice import choice_probability, read_choice_question
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.statistics.alpaca_eval.difficulty_files import read_difficulties
from dynamic_dpo.eval.statistics.alpaca_eval.numbers import AlpacaEvalNumbers, alpaca_eval_table
from helpers_judgements import judged

pytestmark = pytest.mark.alpaca_eval

NUM = 805
PROMPTS = [
    PromptRecord.of([{"role": "user", "content": f"Question {number}: Füße?\u2028"}], category="koala")
    for number in range(NUM)
]

# The published program: it reads files of annotations, computes, and writes its own; its table of the baseline at
# other lengths comes from the hub's cache.
PROGRAM = """
import json, sys
from alpaca_eval import constants, main
folder, cache = sys.argv[1:]
constants.DEFAULT_CACHE_DIR, constants.DATASETS_FORCE_DOWNLOAD = cache, False
table, annotations = main.evaluate(
    model_outputs=f"{folder}/model_outputs.json", reference_outputs=f"{folder}/reference_outputs.json",
    name="new", annotators_config="weighted_alpaca_eval_gpt4_turbo", output_path=folder,
    precomputed_leaderboard=f"{folder}/known.csv", is_recompute_metrics_only=True, is_return_instead_of_print=True,
    is_cache_leaderboard=False, metric_kwargs={"save_weights_dir": None}, fn_metric="get_length_controlled_winrate",
)
print(json.dumps({key: float(value) for key, value in table.loc["new"].items() if key != "mode"}))
"""


# What the package would ask its judge, and how it reads an answer of one token.
ASKED = """
import json, sys
import pandas as pd
from alpaca_eval import completion_parsers, constants, utils
texts, alternatives = json.loads(sys.argv[1])
path = constants.EVALUATORS_CONFIG_DIR / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt"
(prompt,), _ = utils.make_prompts(pd.DataFrame([texts]), path.read_text())
top = [{"token": token, "logprob": value} for token, value in alternatives]
(preference,) = completion_parsers.logprob_parser(
    {"logprobs": {"content": [{"top_logprobs": top}]}}, "m", ["m", "M"], is_binarize=False
)
print(json.dumps([str(path), utils.prompt_to_chatml(prompt), float(preference)]))
"""


@pytest.fixture(scope="module")
def interpreter() -> str:
    """The interpreter of an environment with the package."""
    own = Path(__file__).resolve().parents[3] / ".venv-alpaca-eval" / "bin" / "python"
    found = os.environ.get("ALPACA_EVAL_PYTHON", str(own))
    if not Path(found).is_file():
        pytest.skip(f"no environment with the alpaca_eval package at {found}: run make test-alpaca-eval")
    return found


def simulated() -> tuple[list[OutputRecord], list[JudgementRecord], list[dict[str, Any]]]:
    """Return outputs, weighted judgements with some ties and invalid ones, and the table of the baseline."""
    rng = np.random.default_rng(11)
    difficulty = rng.normal(size=NUM) * 1.5
    lengths = {"old": rng.integers(50, 3000, size=NUM), "new": rng.integers(30, 2000, size=NUM)}

    def preference(longer: np.ndarray, bias: float) -> np.ndarray:
        z = bias + 1.7 * np.tanh(longer / longer.std()) + difficulty + rng.normal(size=NUM)
        return 1 / (1 + np.exp(-2 * z))

    outputs = [
        OutputRecord(prompt.id, name, 0, "x" * int(lengths[name][place]), 0, True)
        for name in lengths
        for place, prompt in enumerate(PROMPTS)
    ]
    judgements = []
    for place, weight in enumerate(preference(lengths["new"] - lengths["old"], -0.8).tolist()):
        verdict = (
            "invalid" if place % 97 == 5 else "tie" if place % 101 == 7 else "B" if weight > 0.5 else "A"
        )
        known = {"prob_first": 1 - weight} if verdict in ("A", "B") else {}
        judgements.append(
            judged(PROMPTS[place].id, "old", "new", verdict, judge="weighted_alpaca_eval_gpt4_turbo", **known)
        )
    table = []
    for model, change in (("verbose", 400.0), ("concise", -900.0)):
        longer = change + rng.normal(size=NUM) * 600
        for place, share in enumerate(preference(longer, 0.0).tolist()):
            table.append(
                {
                    "model": model,
                    "preference": share,
                    "index": place,
                    # How much shorter the changed output is.
                    "std_delta_len": -float(longer[place]) / float(longer.std(ddof=1)),
                    "instruction_difficulty": float(difficulty[place]),
                    "not_gamed_baseline": False,
                }
            )
    return outputs, judgements, table


def in_the_hubs_cache(folder: Path, table: list[dict[str, Any]]) -> Path:
    """Lay the table where the hub's client looks for AlpacaEval's own, and return it."""
    repository, commit = folder / "datasets--tatsu-lab--alpaca_eval", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    path = repository / "snapshots" / commit / "df_gamed.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def test_the_package_accepts_our_files_and_gives_our_numbers(tmp_path: Path, interpreter: str) -> None:
    outputs, judgements, table = simulated()
    gamed = in_the_hubs_cache(tmp_path / "cache", table)
    judge = "weighted_alpaca_eval_gpt4_turbo"
    folder = tmp_path / judge
    folder.mkdir()
    for name, model in (("model_outputs", "new"), ("reference_outputs", "old")):
        export_alpaca_outputs(tmp_path / f"{name}.json", PROMPTS, outputs, model)
    # In another order than the set's: their table of difficulties goes by the places that we give.
    export_alpaca_annotations(
        folder / "annotations.json",
        PROMPTS[::-1],
        outputs,
        judgements,
        model="new",
        baseline="old",
        judge=judge,
        places={prompt.id: place for place, prompt in enumerate(PROMPTS)},
    )
    (tmp_path / "known.csv").write_text(",win_rate,mode,avg_length\nnew,0,community,0\n")
    done = subprocess.run(
        [interpreter, "-c", PROGRAM, str(tmp_path), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])

    known = read_difficulties(gamed, [prompt.id for prompt in PROMPTS])
    (ours,) = alpaca_eval_table(judgements, outputs, "old", judge=judge, difficulties=known).models
    same(ours, theirs)

    back = import_alpaca_annotations(folder / "annotations.json", PROMPTS)
    (again,) = alpaca_eval_table(back.judgements, back.outputs, "old", judge=judge, difficulties=known).models
    same(again, theirs)


def test_the_judge_is_asked_and_read_as_the_package_does(interpreter: str) -> None:
    texts = {"instruction": 'Name "one" {fruit}.\n', "output_1": "Fig\n\n", "output_2": "A {output_1} \u2028"}
    alternatives = [("M", -0.3), ("m", -1.7), (" m", -3.0), ("The", -5.0)]
    done = subprocess.run(
        [interpreter, "-c", ASKED, json.dumps([texts, alternatives])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    path, messages, preference = json.loads(done.stdout.splitlines()[-1])
    assert read_choice_question(path).filled(*texts.values()) == [
        {"role": message["role"], "content": message["content"]} for message in messages
    ]
    share = choice_probability(Token("M", tuple(alternatives)), "m", "M")
    assert share is not None
    assert 2 - share == pytest.approx(preference, abs=1e-12)


def same(ours: AlpacaEvalNumbers, theirs: dict[str, float]) -> None:
    assert 100 * ours.weighted.rate == pytest.approx(theirs["win_rate"], abs=1e-6)
    assert 100 * ours.weighted.standard_error == pytest.approx(theirs["standard_error"], abs=1e-6)
    assert 100 * ours.discrete == pytest.approx(theirs["discrete_win_rate"], abs=1e-6)
    assert ours.weighted.num_prompts == theirs["n_total"]
    assert ours.controlled is not None
    # Their optimiser stops at 1e-4, and they predict questions without a verdict too.
    assert 100 * ours.controlled.rate == pytest.approx(theirs["length_controlled_winrate"], abs=0.02)
    assert 100 * ours.controlled.standard_error == pytest.approx(theirs["lc_standard_error"], abs=0.02)
