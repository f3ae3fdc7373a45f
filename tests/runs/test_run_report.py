from __future__ import annotations

import base64
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynamic_dpo.errors import DataError
from dynamic_dpo.runs.page import Sample, write_run_report
from dynamic_dpo.runs.plots import draw_plots
from dynamic_dpo.runs.record import read_run
from helpers_pages import Page
from hostile_texts import HARMLESS, HOSTILE, named

NUM_UPDATES, NUM_WARMUP = 12, 4
PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pixels: what the pictures show does not depend on it, and the time does."""
    monkeypatch.setattr("dynamic_dpo.runs.plots.DPI", 30)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(folder: Path, *, method: str = "risk") -> Path:
    """A run's folder: margins grow, beta leaves 0.1 for 0.18 after the warm-up."""
    folder.mkdir(parents=True)
    updates = range(1, NUM_UPDATES + 1)
    write_lines(
        folder / "logs/margins/margins.jsonl",
        [{"step": u, "p10": u / 10 - 1, "median": u / 10, "p90": u / 10 + 1} for u in updates],
    )
    if method != "dpo":
        write_lines(folder / "logs/margins/controller.jsonl", [reading(update) for update in updates])
    history: list[dict[str, Any]] = [
        {"step": u, "loss": 0.69 - u / 100, "rewards/accuracies": 0.5 + u / 50} for u in updates
    ]
    history.append({"step": NUM_UPDATES, "eval_loss": 0.625, "eval_rewards/accuracies": 0.75})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    summary = {
        "method": {"name": method, "mode": "exact", "scope": "step"},
        "pairs_per_second": 1.25,
        "optimizer_steps": NUM_UPDATES,
        "pairs_seen": 1536,
        "reference_computed": 100,
        "reference_reused": 300,
        "peak_memory_bytes": 3 * 2**30,
        "beta_final": 0.18,
        "wall_seconds": 331.2,
        "versions": {"torch": "2.13.0"},
        "config_hash": "c0ffee",
    }
    (folder / "run_summary.json").write_text(json.dumps(summary))
    return folder


def reading(update: int) -> dict[str, Any]:
    if update <= NUM_WARMUP:
        return {"step": update, "update": update, "beta": 0.1, "warmup": True, "tau": None, "delta": 0.1}
    return {
        "step": update,
        "update": update,
        "beta": 0.1 + 0.01 * (update - NUM_WARMUP),
        "warmup": False,
        "tau": 1.5,
        "p_hat": 0.25 if update % 2 else 0.0,
        "delta": 0.1,
    }


def test_a_whole_run_gives_a_page_and_a_picture_of_each_kind(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = write_run_report(run)
    assert path == run / "report.html"
    pictures = sorted((run / "plots").iterdir())
    assert [picture.name for picture in pictures] == [
        *["accuracies.png", "beta.png", "loss.png", "margins.png", "p_hat.png"]
    ]
    assert all(picture.read_bytes().startswith(PNG_START) for picture in pictures)
    page = Page(path)
    assert page.open == []
    inside = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    decoded = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in inside]
    assert sorted(decoded) == sorted(picture.read_bytes() for picture in pictures)


def test_alarms_stand_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "alarms" not in Page(write_run_report(run)).text
    sentence = "chosen answers have lost <b>1.25</b> nats a token"
    write_lines(
        run / "raised_alarms.jsonl", [{"name": "chosen_fall", "step": 20, "sentence": sentence}, {"step": 3}]
    )
    text = Page(write_run_report(run)).text
    assert "The run raised alarms" in text
    assert f"Step 20: {sentence}." in text


def vertical_lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Note where vertical lines are drawn, and how; they are drawn all the same."""
    from matplotlib.axes import Axes

    drawn: list[tuple[float, str]] = []
    own = Axes.axvline

    def noted(axes: Axes, x: float = 0, *args: Any, **kwargs: Any) -> Any:
        drawn.append((x, kwargs["linestyle"]))
        return own(axes, x, *args, **kwargs)

    monkeypatch.setattr(Axes, "axvline", noted)
    return drawn


def test_alarms_and_the_step_that_was_kept_are_marked_in_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    drawn = vertical_lines(monkeypatch)
    before = {plot.name: plot for plot in draw_plots(read_run(run))}
    assert drawn == []
    # Two controller updates a step: step 3 is made with update 6.
    lines = [{**reading(update), "step": (update + 1) // 2} for update in range(1, NUM_UPDATES + 1)]
    write_lines(run / "logs/margins/controller.jsonl", lines)
    write_lines(run / "raised_alarms.jsonl", [{"step": 3, "sentence": "a"}, {"step": 3, "sentence": "b"}, {}])
    summary = json.loads((run / "run_summary.json").read_text())
    summary["keep_best"] = {"step": 5, "metric": "eval_loss", "value": 0.6}
    (run / "run_summary.json").write_text(json.dumps(summary))
    after = {plot.name: plot for plot in draw_plots(read_run(run))}
    by_update, by_step = [(6.0, ":"), (10.0, "-.")], [(3.0, ":"), (5.0, "-.")]
    assert drawn == [*by_update * 3, *by_step * 2]
    for name, plot in after.items():
        assert plot.caption == (
            f"{before[name].caption} Dotted, in orange: alarms, at step 3. Dash-dotted, in green: step 5, whose "
            "weights were kept."
        )
        assert plot.png != before[name].png


def test_pictures_over_updates_are_not_marked_where_nothing_says_when_these_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", method="dpo")
    write_lines(run / "raised_alarms.jsonl", [{"step": 7, "sentence": "a"}])
    drawn = vertical_lines(monkeypatch)
    draw_plots(read_run(run))
    assert drawn == [(7.0, ":")] * 2


def test_the_page_shows_what_the_run_cost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "run_summary.json").read_text())
    rates = {"needed_tokens_per_second": 1234.5, "tflop_per_second": 0.0512, "share_of_matmul_limit": 0.5}
    peaks = {"rank 0: NVIDIA L4": 2**31, "rank 1: NVIDIA L4": 2**30}
    summary["cost"] = {"rates": rates, "peak_memory_bytes_by_device": peaks}
    (run / "run_summary.json").write_text(json.dumps(summary))
    text = Page(write_run_report(run)).text
    for words in (
        "Needed tokens 1,234/s",
        "Needed operations 0.0512 TFLOP/s",
        "Share of the matmul limit 50.0 %",
        "Peak memory, rank 1: NVIDIA L4 1.0 GiB",
    ):
        assert words in text
    assert "Share of the nominal peak" not in text
    for broken in ({}, [], {"rates": 3}, {"rates": {"needed_tokens_per_second": "fast"}}):
        (run / "run_summary.json").write_text(json.dumps(summary | {"cost": broken}))
        assert "Needed tokens" not in Page(write_run_report(run)).text


def test_the_page_shows_the_runs_key_figures(tmp_path: Path) -> None:
    text = Page(write_run_report(make_run(tmp_path / "run"))).text
    for words in (
        "Run run",
        "method risk, mode exact, scope step",
        "Final beta 0.18",
        "Median margin, last batch +1.20 nats",
        "Pairs seen 1,536",
        "Optimizer steps 12",
        "Training speed 1.25 pairs/s",
        "Peak memory 3.0 GiB",
        "Reference pairs reused 75 %",
        "Wall time 5 min 31 s",
        "config_hash c0ffee",
        "versions torch 2.13.0",
    ):
        assert words in text


def test_each_picture_is_explained_in_its_own_numbers(tmp_path: Path) -> None:
    plots = {plot.name: plot for plot in draw_plots(read_run(make_run(tmp_path / "run")))}
    assert list(plots) == ["beta", "margins", "p_hat", "loss", "accuracies"]
    assert "began at 0.1 and rose to 0.18" in plots["beta"].caption
    assert "4 updates of warm-up" in plots["beta"].caption
    assert "from 0.1 to 1.2 nats" in plots["margins"].caption
    # Updates 5 to 12 alternate between .25 and 0: the mean is .125.
    assert "0.125 on average, where 0.1 is tolerated" in plots["p_hat"].caption
    assert "from 0.680 to 0.570" in plots["loss"].caption
    assert "held-out pairs it ended at 0.625" in plots["loss"].caption
    assert "0.52 at first, 0.74 at the end" in plots["accuracies"].caption


def test_a_fixed_beta_has_no_controller_and_a_page_all_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", method="dpo")
    text = Page(write_run_report(run)).text
    assert sorted(picture.stem for picture in (run / "plots").iterdir()) == ["accuracies", "loss", "margins"]
    assert "method dpo" in text
    assert "threshold" not in text


def test_a_run_that_never_left_the_warm_up_has_no_threshold_to_show(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_lines(run / "logs/margins/controller.jsonl", [reading(update) for update in range(1, 5)])
    captions = {plot.name: plot.caption for plot in draw_plots(read_run(run))}
    assert "stayed at 0.1" in captions["beta"]
    assert "threshold" not in captions["margins"]
    assert "p_hat" not in captions


@pytest.mark.parametrize(
    "kept",
    ["run_summary.json", "trainer_state.json", "logs/margins/margins.jsonl", "logs/margins/controller.jsonl"],
)
def test_any_one_of_a_runs_files_is_enough(tmp_path: Path, kept: str) -> None:
    run = make_run(tmp_path / "run")
    for path in [*run.glob("*.json"), *run.glob("logs/margins/*.jsonl")]:
        if path.relative_to(run).as_posix() != kept:
            path.unlink()
    page = Page(write_run_report(run))
    assert page.open == []
    assert ("interrupted" in page.text) is (kept != "run_summary.json")


def test_the_state_of_the_last_checkpoint_stands_in_for_the_runs_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    state = (run / "trainer_state.json").read_text()
    (run / "trainer_state.json").unlink()
    for number, text in ((9, '{"log_history": []}'), (10, state)):
        (run / f"checkpoint-{number}").mkdir()
        (run / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    assert len(read_run(run).history) == NUM_UPDATES + 1


def test_a_log_named_by_the_summary_is_read_where_it_lies(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere.jsonl"
    write_lines(elsewhere, [{"step": 1, "median": 5.0}])
    summary = json.loads((run / "run_summary.json").read_text())
    (run / "run_summary.json").write_text(json.dumps({**summary, "margins_path": str(elsewhere)}))
    assert read_run(run).series("margins", "median") == [5.0]
    elsewhere.unlink()
    assert len(read_run(run).margins) == NUM_UPDATES


def test_samples_stand_side_by_side_with_their_scores(tmp_path: Path) -> None:
    samples = [Sample("A ramen bar?", "Bad.", "Wonderful!", -0.5, 0.75), Sample("A film?", "", "Fine.")]
    text = Page(write_run_report(make_run(tmp_path / "run"), samples=samples)).text
    assert "A ramen bar? Before -0.50 Bad. After +0.75 Wonderful!" in text
    assert "A film? Before nothing After Fine." in text


def test_a_given_table_comes_before_the_runs_own_figures(tmp_path: Path) -> None:
    table = {"Mean sentiment": "0.36 to 0.58", "KL": 1.23456, "Prompts": 32, "Judge": None}
    text = Page(write_run_report(make_run(tmp_path / "run"), table=table, title="Quickstart")).text
    assert "Quickstart" in text
    assert "Key figures Mean sentiment 0.36 to 0.58 KL 1.23 Prompts 32 Judge – Final beta 0.18" in text


def written_everywhere(text: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page of a run in which every name and text is the given one."""
    monkeypatch.setattr("dynamic_dpo.runs.page.draw_plots", lambda run: [])
    summary = json.loads((run / "run_summary.json").read_text())
    summary |= {
        "method": {"name": text, "mode": text, "scope": text, "settings": {text: text}, "own": [text]},
        "versions": {text: text},
        "config_hash": text,
    }
    (run / "run_summary.json").write_text(json.dumps(summary))
    path = write_run_report(
        run,
        samples=[Sample(text, text, text, 0.5, -0.5), Sample(text, text, text)],
        title=text,
        table={text: text},
        links={text: run / "other.html"},
    )
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", HOSTILE, ids=named)
def test_nothing_that_a_model_or_user_wrote_becomes_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    ours, theirs = (
        written_everywhere(written, make_run(tmp_path / name), monkeypatch)
        for name, written in (("hostile", text), ("harmless", HARMLESS))
    )
    assert Page(ours).structure == Page(theirs).structure
    for sign in "<>\"'":
        assert ours.count(sign) == theirs.count(sign), sign
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", ours)
    assert len(ours) < 3_000_000


@pytest.mark.parametrize("text", HOSTILE, ids=named)
def test_a_run_may_have_any_name_that_a_folder_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("dynamic_dpo.runs.page.draw_plots", lambda run: [])
    # Half a pair stands for a single byte of a name, or for nothing that a disk could hold.
    name = re.sub("[/\0\ud800-\udc7f\udd00-\udfff]", "|", text)
    run = make_run(tmp_path / os.fsdecode(os.fsencode(name)[:200]))
    page = Page(write_run_report(run, links={"other": run / "other.html"}))
    assert page.text.startswith("Run ")
    assert ("a", "href", "other.html") in page.attributes


def test_the_command_prints_the_page_of_a_run_whose_name_is_no_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / os.fsdecode(b"run-\xff-\x1b[31m"))
    command = [sys.executable, "-m", "dynamic_dpo.cli.main", "report", os.fsencode(run)]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, check=False, env=strict)
    assert result.stderr == b""
    assert result.stdout.decode().endswith("/run-?-\ufffd[31m/report.html\n")
    assert (run / "report.html").is_file()


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    path = write_run_report(make_run(tmp_path / "run"), samples=[Sample("p", "b", "a")])
    page = Page(path)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    source = path.read_text()
    assert not re.search(r"url\(|@import|https?://", source)
    assert "default-src 'none'" in source


def test_the_page_can_be_read_by_a_screen_reader(tmp_path: Path) -> None:
    page = Page(write_run_report(make_run(tmp_path / "run"), samples=[Sample("p", "b", "a")]))
    assert ("html", "lang", "en") in page.attributes
    alternatives = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(alternatives) == page.tags.count("img") == 5
    assert all(len(text) > 40 for text in alternatives)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    named = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert named == {value for _, name, value in page.attributes if name == "id"} != set()


def test_the_page_has_a_dark_theme_in_which_the_pictures_are_dark_too(tmp_path: Path) -> None:
    source = write_run_report(make_run(tmp_path / "run")).read_text(encoding="utf-8")
    dark = source[source.index("@media (prefers-color-scheme: dark)") :]
    assert "figure img { filter: invert" in dark


def test_nested_settings_are_listed_one_by_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    summary = json.loads((run / "run_summary.json").read_text())
    summary["method"]["settings"] = {"delta": 0.25, "gamma": 2.0}
    (run / "run_summary.json").write_text(json.dumps(summary))
    text = Page(write_run_report(run)).text
    assert "settings.delta 0.25 settings.gamma 2" in text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = write_run_report(run).read_bytes()
    assert write_run_report(run).read_bytes() == first


def test_the_page_can_be_written_elsewhere(tmp_path: Path) -> None:
    path = write_run_report(make_run(tmp_path / "run"), out=tmp_path / "pages" / "one.html")
    assert path == tmp_path / "pages" / "one.html"
    assert path.exists()


def test_numbers_that_are_not_numbers_leave_gaps_and_no_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "logs/margins/margins.jsonl").write_text(
        '{"step": 1, "p10": NaN, "median": NaN, "p90": NaN}\n'
        '{"step": 2, "p10": null, "median": 0.5, "p90": Infinity}\n'
    )
    (run / "run_summary.json").write_text('{"method": null, "pairs_per_second": null, "beta_final": "high"}')
    record = read_run(run)
    assert math.isnan(record.series("margins", "median")[0])
    text = Page(write_run_report(run)).text
    assert "Median margin, last batch +0.50 nats" in text
    assert "Training speed" not in text
    assert "nan" not in text


def test_half_a_last_line_of_a_killed_run_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    log = run / "logs/margins/controller.jsonl"
    whole = log.read_bytes()
    for half in (b'{"step": 13, "upd', b"\xff\0\0"):
        log.write_bytes(whole + half)
        assert len(read_run(run).controller) == NUM_UPDATES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run_summary.json", "{", r"run_summary\.json is not JSON"),
        ("run_summary.json", "[]", "must hold a JSON object, got list"),
        ("trainer_state.json", '{"log_history": 3}', "log_history.*must be a list, got int"),
        ("logs/margins/margins.jsonl", "{}\nhalf\n{}\n", r"line 2 of .*margins\.jsonl is no JSON object"),
        ("logs/margins/margins.jsonl", "[1]\n{}\n", r"line 1 of .*margins\.jsonl is no JSON object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(DataError, match=message):
        write_run_report(run)


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no run")
    with pytest.raises(DataError, match=r"holds no training run.*give the save_dir"):
        write_run_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        write_run_report(tmp_path / "nowhere")


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is a folder; name a file in it"):
        write_run_report(make_run(tmp_path / "run"), out=tmp_path)


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from dynamic_dpo.eval import write_run_report\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"write_run_report({str(make_run(tmp_path / 'run'))!r})\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_other_pages_are_led_to_by_a_path_that_moves_with_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = write_run_report(run, links={"Wins & losses": run / "evaluation" / "a report.html"})
    assert '<a href="evaluation/a%20report.html">Wins &amp; losses</a>' in page.read_text(encoding="utf-8")
