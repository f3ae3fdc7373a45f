"""The report of an evaluation: what it says, what it leaves out, and that nothing in it can act."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.records import JudgementRecord, OutputRecord, PromptRecord
from dynamic_dpo.eval.report.data import EvaluationData
from dynamic_dpo.eval.report.figures import frontier_plot
from dynamic_dpo.eval.report.summary import summarise
from dynamic_dpo.eval.report.write import CSV_COLUMNS, ReportPaths, write_evaluation_report
from dynamic_dpo.eval.scoring.metrics import FrontierPoint, summarise_margins
from helpers_judgements import judged
from helpers_pages import Page
from hostile_texts import HARMLESS, HOSTILE, named

CHROMIUM = shutil.which("chromium")


def evaluation(
    *,
    num_prompts: int = 12,
    models: tuple[str, ...] = ("new", "other", "old"),
    judges: tuple[str, ...] = ("gpt", "vader"),
    **changes: Any,
) -> EvaluationData:
    """An evaluation in which earlier models of the list write longer and win more often."""
    rng = np.random.default_rng(0)
    prompts = [
        PromptRecord.of(
            [{"role": "user", "content": f"Question {n}"}],
            category=("help", "harm")[n % 2],
            reference="A human's.",
        )
        for n in range(num_prompts)
    ]
    outputs = [
        OutputRecord(
            prompt.id, model, 0, "word " * int(rng.integers(5, 40) + 10 * (3 - rank)), 30, finished=True
        )
        for prompt in prompts
        for rank, model in enumerate(models)
    ]
    judgements = []
    for prompt in prompts:
        for judge in judges:
            for first, second in permutations(models, 2):
                lead = models.index(second) - models.index(first)
                verdict = "A" if rng.random() < 1 / (1 + np.exp(-lead)) else "B"
                record = judged(prompt.id, first, second, verdict, judge=judge, reason="The first is kinder.")
                judgements.append(replace(record, prompt_tokens=100, completion_tokens=20, cost=0.001))
    data = EvaluationData(
        prompts,
        outputs,
        judgements,
        title="New against old",
        created="2026-11-23 04:00:00 UTC",
        baseline="old",
        provenance={"new": {"path": "out/new", "sha256": "ab" * 8}, "judge": {"template": "hh-v1"}},
        num_resamples=200,
    )
    return replace(data, **changes)


FULL = evaluation(
    stopped="limit of 2.00 in money",
    num_questions=184,
    notes=("2 prompts were left out.",),
    preference={"new": summarise_margins([1.0, 2.0, -0.5], beta=0.1), "old": summarise_margins([0.5])},
    frontier=[FrontierPoint("step 10", 1.0, 0.5), FrontierPoint("step 20", 3.0, 0.7)],
)


def page(paths: ReportPaths) -> str:
    return paths.html.read_text(encoding="utf-8")


SECTIONS = [
    "Read this first",
    "Win rates",
    "By category",
    "Lengths and faults of the outputs",
    "Does the order matter?",
    "Strengths of all models (Bradley–Terry)",
    "Methods against each other",
    "Do the judges agree?",
    "Implicit rewards",
    "Reward and KL",
    "Side by side",
]


def test_a_full_report_has_every_section(tmp_path: Path) -> None:
    paths = write_evaluation_report(tmp_path, FULL)
    elements = Page(page(paths))
    assert elements.headings == SECTIONS
    assert elements.open == []
    assert len(set(elements.ids)) == len(elements.ids)
    assert [path.name for path in paths] == ["report.html", "report.md", "results.csv", "results.json"]


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    two_models = evaluation(models=("new", "old"), judges=("gpt",))
    assert Page(page(write_evaluation_report(tmp_path / "two", two_models))).headings == [
        "Win rates",
        "By category",
        "Lengths and faults of the outputs",
        "Does the order matter?",
        "Side by side",
    ]
    only_verdicts = replace(two_models, prompts=[], outputs=[], provenance={}, created="")
    paths = write_evaluation_report(tmp_path / "verdicts", only_verdicts)
    assert Page(page(paths)).headings == ["Win rates", "Does the order matter?"]
    assert "equal length" not in page(paths).lower()
    nothing = EvaluationData([], [], [])
    paths = write_evaluation_report(tmp_path / "nothing", nothing)
    assert Page(page(paths)).headings == []
    assert paths.markdown.read_text() == "# Evaluation\n"


def test_equal_input_gives_equal_files_whatever_its_order(tmp_path: Path) -> None:
    first = write_evaluation_report(tmp_path / "a", FULL)
    again = write_evaluation_report(tmp_path / "b", FULL)
    turned = replace(
        FULL,
        prompts=FULL.prompts[::-1],
        outputs=FULL.outputs[::-1],
        judgements=FULL.judgements[::-1],
        frontier=FULL.frontier[::-1],
    )
    other_order = write_evaluation_report(tmp_path / "c", turned)
    for one, two, three in zip(first, again, other_order, strict=True):
        assert one.read_bytes() == two.read_bytes() == three.read_bytes()


def test_early_stops_and_missing_answers_stand_before_the_win_rates(tmp_path: Path) -> None:
    paths = write_evaluation_report(tmp_path, FULL)
    for text in (page(paths), paths.markdown.read_text()):
        stop, left = text.index("limit of 2.00 in money"), text.index("40 of 184 questions have no answer")
        assert stop < left < text.index("2 prompts were left out.") < text.index("Win rates")
    assert json.loads(paths.json.read_text())["stopped"] == "limit of 2.00 in money"


def test_many_invalid_verdicts_and_faulty_outputs_are_said_loudly() -> None:
    data = evaluation(models=("new", "old"), judges=("gpt",))
    invalid = [replace(r, verdict="invalid") if n < 3 else r for n, r in enumerate(data.judgements)]
    faulty = [
        replace(o, flags=["role_header"]) if n % 2 == 0 else o for n, o in enumerate(data.outputs)
    ]  # Every output of "new".
    alarms = summarise(replace(data, judgements=invalid, outputs=faulty)).alarms
    assert alarms == [
        "gpt gave no usable verdict on 3 of 24 questions (12 %): the win rates leave these out.",
        "12 of 12 outputs of new have faults of generation (100 %: role header): a judge may have compared those "
        "rather than answers.",
    ]
    assert summarise(data).alarms == []


def written_everywhere(text: str) -> EvaluationData:
    """An evaluation in which every text, name and reason is the given one."""
    turns = [{"role": text, "content": text}, {"role": "user", "content": text}]
    # The ids are given: the order of prompts on the page follows them, and content would change them.
    prompts = [
        PromptRecord("p1", turns, category=text, reference=text),
        PromptRecord("p2", turns[1:], category=f"{text} too"),
    ]
    models = [f"{text} {number}" for number in range(3)]
    return EvaluationData(
        prompts,
        [OutputRecord(prompt.id, model, 0, text, 1, True, [text]) for prompt in prompts for model in models],
        [
            judged(prompt.id, first, second, "A", judge=f"{text} judge {number}", reason=text)
            for prompt in prompts
            for number in range(2)
            for first, second in permutations(models, 2)
        ],
        title=text,
        created=text,
        baseline=models[0],
        stopped=text,
        notes=[text],
        provenance={text: {text: text}},
        preference={text: summarise_margins([1.0])},
        frontier=[FrontierPoint(text, 1.0, 1.0)],
        num_resamples=100,
    )


class Written(NamedTuple):
    html: str
    markdown: str
    csv: str
    json: str


def write(text: str, folder: Path) -> Written:
    paths = write_evaluation_report(folder, written_everywhere(text))
    return Written(*(path.read_text(encoding="utf-8") for path in paths))


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(HARMLESS, tmp_path_factory.mktemp("harmless"))


@pytest.fixture(scope="module", params=HOSTILE, ids=named)
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(request.param, tmp_path_factory.mktemp("hostile"))


def test_whatever_anybody_wrote_is_text_of_the_page(hostile: Written, harmless: Written) -> None:
    assert Page(hostile.html).structure == Page(harmless.html).structure
    # Whatever a parser makes of the page: no sign of HTML in it is anybody's but the page's.
    for sign in "<>\"'":
        assert hostile.html.count(sign) == harmless.html.count(sign), sign


def test_whatever_anybody_wrote_is_text_in_markdown(hostile: Written, harmless: Written) -> None:
    assert hostile.markdown.count("\n") == harmless.markdown.count("\n")
    assert markdown_structure(hostile.markdown) == markdown_structure(harmless.markdown)


def test_whatever_anybody_wrote_is_a_cell_of_the_csv_and_a_string_of_the_json(
    hostile: Written, harmless: Written
) -> None:
    rows, expected = (list(csv.reader(io.StringIO(text, newline=""))) for text in (hostile.csv, harmless.csv))
    assert [len(row) for row in rows] == [len(CSV_COLUMNS)] * len(expected)
    assert json.loads(hostile.json).keys() == json.loads(harmless.json).keys()


def test_nothing_that_acts_unseen_or_has_no_end_is_left_in_a_report(hostile: Written) -> None:
    for text in hostile:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert len(hostile.html) + len(hostile.markdown) < 30_000_000


def markdown_structure(text: str) -> list[object]:
    """Return what a Markdown renderer makes of a text, the words left out."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [
        (
            token.type,
            token.tag,
            [child.type for child in token.children or () if child.type != "text_special"],
        )
        for token in parser.parse(text)
    ]


def test_the_headings_lead_a_screen_reader_step_by_step(tmp_path: Path) -> None:
    elements = Page(page(write_evaluation_report(tmp_path, FULL)))
    levels = [int(tag[1]) for tag in elements.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    html = page(write_evaluation_report(tmp_path, FULL))
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|url\(|@import", html)


def test_stray_surrogates_and_control_characters_do_not_stop_a_report(tmp_path: Path) -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    outputs = [OutputRecord(prompt.id, name, 0, "a\ud83db\x00\x1b[31mc", 0, True) for name in ("new", "old")]
    record = judged(prompt.id, "new", "old", "A", reason="\udfff")
    paths = write_evaluation_report(tmp_path, EvaluationData([prompt], outputs, [record], num_resamples=100))
    assert "a?b\ufffd\ufffd[31mc" in page(paths)


def test_the_numbers_are_the_same_in_json_csv_and_markdown(tmp_path: Path) -> None:
    paths = write_evaluation_report(tmp_path, FULL)
    numbers = json.loads(paths.json.read_text())
    rows = list(csv.DictReader(paths.csv.read_text().splitlines()))
    assert list(rows[0]) == list(CSV_COLUMNS)
    # 2 judges x 3 pairs, each overall and in 2 categories.
    assert len(rows) == 2 * 3 * 3
    assert len(numbers["pairs"]) == 2 * 3
    overall = [row for row in rows if not row["category"]]
    for pair, row in zip(numbers["pairs"], overall, strict=True):
        found, counts = pair["overall"], pair["overall"]["counts"]
        assert (row["model"], row["baseline"], row["judge"]) == (
            found["model"],
            found["baseline"],
            found["judge"],
        )
        assert float(row["win_rate"]) == pytest.approx(found["rate"], abs=1e-6)
        assert float(row["win_rate_low"]) == pytest.approx(found["interval"]["low"], abs=1e-6)
        assert float(row["length_controlled"]) == pytest.approx(pair["controlled"]["rate"], abs=1e-6)
        assert int(row["wins"]) == counts["wins"]
        assert f"| {100 * found['rate']:.1f} % |" in paths.markdown.read_text()
    judges = {judge["name"]: judge for judge in numbers["judges"]}
    assert judges["gpt"]["cost"] == pytest.approx(72 * 0.001)
    assert judges["gpt"]["prompt_tokens"] == 72 * 100


def test_unknown_numbers_are_null_and_empty_cells(tmp_path: Path) -> None:
    prompt = PromptRecord.of([{"role": "user", "content": "Hi"}])
    records = [judged(prompt.id, "new", "old", "invalid")]
    paths = write_evaluation_report(tmp_path, EvaluationData([prompt], [], records, num_resamples=100))
    pair = json.loads(paths.json.read_text())["pairs"][0]
    assert pair["overall"]["rate"] is None
    assert pair["controlled"] is None
    (row,) = csv.DictReader(paths.csv.read_text().splitlines())
    assert (row["win_rate"], row["win_rate_low"], row["invalid"]) == ("", "", "1")
    assert "Nothing is known about old against new" in paths.markdown.read_text()


@pytest.mark.parametrize(
    ("wins", "sentence"),
    [
        (24, "new is preferred to old on 30 prompts: in at least 62.4 %"),
        (16, "new and old cannot be told apart on 30 prompts"),
        (5, "old is preferred to new on 30 prompts: in at least 66."),
    ],
)
def test_the_finding_says_what_the_interval_says(tmp_path: Path, wins: int, sentence: str) -> None:
    records = [judged(f"p{n}", "new", "old", "A" if n < wins else "B") for n in range(30)]
    paths = write_evaluation_report(tmp_path, EvaluationData([], [], records, baseline="old"))
    assert sentence in paths.markdown.read_text()


def test_an_interval_that_correction_does_not_bear_out_is_not_sold_as_more(tmp_path: Path) -> None:
    # 21 of 30: p = 0.034 alone, 0.10 after Holm's correction for three comparisons.
    records = [
        judged(f"p{n:02d}", *pair, "A" if n < wins else "B")
        for pair, wins in ((("new", "old"), 21), (("new", "other"), 15), (("other", "old"), 15))
        for n in range(30)
    ]
    paths = write_evaluation_report(tmp_path, EvaluationData([], [], records, baseline="old"))
    assert (
        "new and old cannot be told apart on 30 prompts once 3 comparisons are allowed for (p 0.102): by its own "
        "interval alone, new would be preferred in at least 51.5 % of cases."
    ) in paths.markdown.read_text()


def test_a_difference_that_does_not_show_comes_with_the_prompts_that_would_show_it(tmp_path: Path) -> None:
    # 18 of 30: ten points from a half, with one decided verdict a prompt.
    records = [judged(f"p{n:02d}", "new", "old", "A" if n < 18 else "B") for n in range(30)]
    paths = write_evaluation_report(tmp_path, EvaluationData([], [], records, baseline="old"))
    assert (
        "If the difference were as large as it looks (10.0 points), 194 prompts like these would show it"
        in paths.markdown.read_text()
    )
    even = [judged(f"p{n:02d}", "new", "old", "AB"[n % 2]) for n in range(30)]
    paths = write_evaluation_report(tmp_path, EvaluationData([], [], even, baseline="old"))
    assert "prompts like these" not in paths.markdown.read_text()
    assert json.loads(paths.json.read_text())["pairs"][0]["overall"]["num_needed"] is None


def test_a_judge_that_sees_no_order_is_not_said_to_be_swayed_by_one(tmp_path: Path) -> None:
    records = [judged(f"p{n}", "new", "old", "AAB"[n % 3], judge="score") for n in range(9)]
    seen = write_evaluation_report(tmp_path / "seen", EvaluationData([], [], records))
    blind = write_evaluation_report(
        tmp_path / "blind", EvaluationData([], [], records, order_blind=["score"])
    )
    assert "Does the order matter?" in page(seen)
    assert "Does the order matter?" not in page(blind)
    assert "| score | 9 | 0 | sees no order | – | – |" in blind.markdown.read_text()
    assert json.loads(blind.json.read_text())["judges"][0]["bias"] is None


def test_samples_are_drawn_at_random_and_judged_prompts_come_first(tmp_path: Path) -> None:
    data = evaluation(num_shown=5, num_prompts=30, models=("new", "old"), judges=("gpt",))

    def shown(data: EvaluationData) -> list[int]:
        html = page(write_evaluation_report(tmp_path, data))
        return [int(number) for number in re.findall(r">Question (\d+)<", html)]

    assert len(shown(data)) == 5
    assert shown(data) != [0, 1, 2, 3, 4]
    assert shown(data) != shown(replace(data, seed=1))
    last = [record for record in data.judgements if record.id == data.prompts[-1].id]
    assert shown(replace(data, judgements=last))[0] == 29


def test_earlier_turns_are_folded_away_and_reasons_name_both_models(tmp_path: Path) -> None:
    prompt = PromptRecord.of(
        [
            {"role": "user", "content": "First turn"},
            {"role": "assistant", "content": "First answer"},
            {"role": "user", "content": "Second turn"},
        ]
    )
    outputs = [OutputRecord(prompt.id, name, 0, name, 1, True) for name in ("new", "old")]
    record = judged(prompt.id, "old", "new", "B", reason="Kinder.")
    silent = judged(prompt.id, "new", "old", "invalid")
    data = EvaluationData([prompt], outputs, [record, silent], num_resamples=100)
    html = page(write_evaluation_report(tmp_path, data))
    assert "<summary>2 earlier turns</summary>" in html
    assert "judge: prefers new (order shown: old, new)" in html
    assert "judge: no usable verdict (order shown: new, old)" in html
    assert "preferred 1 of 2" in html


def test_names_cannot_break_a_markdown_table(tmp_path: Path) -> None:
    records = [judged("p", "a|b\nc", "`old`", "A")]
    lines = (
        write_evaluation_report(tmp_path, EvaluationData([], [], records, num_resamples=100))
        .markdown.read_text()
        .splitlines()
    )
    table = next(line for line in lines if line.startswith("| judge"))
    (row,) = [line for line in lines if "a\\|b c" in line and line.startswith("|") and "old" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == table.count("|")


def test_a_report_goes_into_a_folder_and_knows_its_baseline(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="it is a file; name a folder"):
        write_evaluation_report(tmp_path / "file", FULL)
    with pytest.raises(
        DataError, match="'nobody' has neither outputs nor judgements; models: new, old, other"
    ):
        write_evaluation_report(tmp_path, replace(FULL, baseline="nobody"))


def test_a_stop_before_the_baseline_was_judged_still_leaves_a_report(tmp_path: Path) -> None:
    judged_so_far = [r for r in FULL.judgements if "old" not in (r.first, r.second)]
    paths = write_evaluation_report(tmp_path, replace(FULL, judgements=judged_so_far))
    assert "limit of 2.00 in money" in paths.markdown.read_text()


def test_a_frontier_of_one_point_can_be_drawn() -> None:
    assert "step 1" in frontier_plot([FrontierPoint("step 1", 0.0, 0.0, True)])


def browse(html: Path, profile: Path) -> str:
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=2000",
        f"--screenshot={profile / 'page.png'}", "--window-size=1200,1600", html.as_uri(),
    ]  # fmt: skip
    profile.mkdir()
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the page with")
def test_a_browser_shows_the_page_without_a_complaint(tmp_path: Path) -> None:
    paths = write_evaluation_report(tmp_path / "report", FULL)
    assert "CONSOLE" not in browse(paths.html, tmp_path / "one")
    assert (tmp_path / "one/page.png").stat().st_size > 20_000
    # The page's own policy is at work, and a complaint would have been seen.
    broken = tmp_path / "broken.html"
    broken.write_text(page(paths).replace("<main>", "<main><script>1</script>"), encoding="utf-8")
    assert "CONSOLE" in browse(broken, tmp_path / "two")


def test_records_are_not_changed_by_a_report(tmp_path: Path) -> None:
    before = [JudgementRecord(**record.to_json()) for record in FULL.judgements]
    write_evaluation_report(tmp_path, FULL)
    assert list(FULL.judgements) == before
