"""The benchmarks' own arithmetic: what counts as needed, how rounds become figures, and that the workers agree."""

from __future__ import annotations

import argparse
import doctest
import importlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode

from dynamic_dpo.engine.rows import PairBatch, shared_rows
from helpers_loops import save_model
from places import ROOT

FOLDER = ROOT / "benchmarks"
DOCUMENTED = ("arguments", "jobs", "machine", "measure", "models", "options", "reports", "tables", "workload")


@pytest.fixture(autouse=True)
def _workbench_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    # The scripts have plain names, such as "memory": leave none of them for other tests to find.
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def part(name: str) -> ModuleType:
    return importlib.import_module(f"workbench.{name}")


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def result(**values: Any) -> Any:
    return part("jobs").Result(**{"num_pairs": 8, "needed_tokens": 800} | values)


def test_the_examples_in_the_docstrings_hold() -> None:
    modules = [part(name) for name in (*DOCUMENTED, "limit")] + [script("saturation"), script("gpu")]
    outcomes = [doctest.testmod(module) for module in modules]
    assert sum(outcome.failed for outcome in outcomes) == 0
    assert sum(outcome.attempted for outcome in outcomes) >= 18


# ---- what is needed ----


def test_needed_tokens_are_the_positions_of_an_unpadded_shared_row() -> None:
    workload = part("workload")
    for pair in workload.random_pairs(workload.LENGTH_LAWS["tiny"], 20, vocabulary=50):
        rows = shared_rows(PairBatch([pair.prompt], [pair.chosen], [pair.rejected], [0]))
        assert workload.needed_tokens([pair]) == rows.input_ids.numel()
        assert workload.predicting_positions([pair]) == len(set(rows.predictors.tolist()))


@pytest.mark.parametrize("name", ["hh", "ultrafeedback", "tiny"])
def test_random_pairs_follow_their_law_and_never_exceed_the_longest(name: str) -> None:
    workload = part("workload")
    law = workload.LENGTH_LAWS[name]
    pairs = workload.random_pairs(law, 1500, vocabulary=500)
    assert pairs == workload.random_pairs(law, 1500, vocabulary=500)
    assert all(len(p) + max(len(c), len(r)) <= law.longest for p, c, r in pairs)
    assert all(p and c[-1] == r[-1] == workload.EOS for p, c, r in pairs)
    # Cutting at the longest takes some of the mean away: 305 of UltraFeedback's 1,024 lose the most.
    assert 0.8 * law.prompt < statistics.mean(len(p) for p, _, _ in pairs) < 1.05 * law.prompt
    assert 0.8 * law.chosen < statistics.mean(len(c) for _, c, _ in pairs) < 1.05 * law.chosen


def test_too_few_usable_rows_are_said(tmp_path: Path) -> None:
    from tiny import word_tokenizer

    rows = [{"prompt": "w1 w2 ", "chosen": f"w{i}", "rejected": "w3"} for i in (4, 5, 3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    workload = part("workload")
    # Row 3's answers are the same, so two rows can be used: w1 is token 5.
    pairs = workload.read_pairs(path, word_tokenizer(), 2, max_length=64)
    assert [tuple(pair) for pair in pairs] == [([5, 6], [8, 2], [7, 2]), ([5, 6], [9, 2], [7, 2])]
    with pytest.raises(SystemExit, match="2 usable pairs among its first 3 rows, 3 are wanted"):
        workload.read_pairs(path, word_tokenizer(), 3, max_length=64)


def test_pairs_survive_the_file_and_their_hash_knows_order(tmp_path: Path) -> None:
    workload = part("workload")
    pairs = workload.random_pairs(workload.LENGTH_LAWS["tiny"], 5, vocabulary=50)
    assert workload.load_pairs(workload.save_pairs(tmp_path / "pairs.json", pairs)) == pairs
    assert workload.ids_hash(pairs) != workload.ids_hash(pairs[::-1])


# ---- the matmul limit ----


def test_the_products_that_are_timed_are_the_flops_that_are_counted(tmp_path: Path) -> None:
    workload, limit, jobs = part("workload"), part("limit"), part("jobs")
    pairs = workload.random_pairs(workload.LENGTH_LAWS["tiny"], 6, vocabulary=512)
    path = workload.save_pairs(tmp_path / "pairs.json", pairs)
    with FlopCounterMode(display=False) as counter:
        found = limit.run(jobs.Job("matmul", str(path), model="tiny", pairs_per_step=4), tmp_path)
    weights = limit.weights_of(part("models").load_model("tiny"))
    warm_up = limit.training_flops(weights, workload.needed_tokens(pairs[:4]), 32)
    # Once as a reference pass, a third of training, once as training, and a warm-up before.
    assert counter.get_total_flops() == pytest.approx(found.flops * 4 / 3 + warm_up)
    assert len(found.step_seconds) == 2
    assert found.needed_tokens == workload.needed_tokens(pairs)


def test_a_llamas_matrices_are_all_its_parameters_but_norms_and_embeddings() -> None:
    model = part("models").load_model("tiny")
    weights = part("limit").weights_of(model)
    matrices = sum(weight.numel() for weight in weights.layers)
    others = sum(p.numel() for name, p in model.named_parameters() if "norm" in name or "embed" in name)
    assert matrices + weights.head.numel() + others == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("total", "at_most"), [(1, 4), (4, 4), (5, 4), (4097, 2048)])
def test_chunks_are_even_and_lose_nothing(total: int, at_most: int) -> None:
    sizes = part("limit").chunk_sizes(total, at_most)
    assert sum(sizes) == total
    assert max(sizes) <= at_most
    assert max(sizes) - min(sizes) <= 1


# ---- rounds and figures ----


def test_every_job_gets_its_rounds_and_no_job_is_always_first() -> None:
    order = part("jobs").plan_rounds({"ours": 3, "trl": 3, "slow": 1})
    assert [sum(name == job for _, name in order) for job in ("ours", "trl", "slow")] == [3, 3, 1]
    firsts = [next(name for turn, name in order if turn == wanted) for wanted in (1, 2, 3)]
    assert firsts == ["ours", "trl", "ours"]


def test_figures_are_medians_and_ratios_within_one_run() -> None:
    # 8 pairs in 4, 2 and 8 seconds are 2, 4 and 1 pairs/s: the median is 2. TRL's is 0.5, the limit's 4.
    ours = [result(step_seconds=[s / 2, s / 2], losses=[0.7, 0.6], ids_sha256="a") for s in (4.0, 2.0, 8.0)]
    passed = {"reference_seconds": 4.0, "reference_positions": 100}
    trl = [result(step_seconds=[8.0, 8.0], losses=[0.7, 0.6003], ids_sha256="a", **passed)]
    limit = [result(step_seconds=[2.0], flops=6e9)]
    figures = script("run").figures_of({"ours": ours, "trl-best": trl, "matmul-limit": limit})
    assert figures["trainers"]["ours"]["pairs_per_second"] == 2.0
    assert figures["trainers"]["ours"]["needed_tokens_per_second"] == 200.0
    assert figures["trainers"]["ours"]["share_of_limit"] == 0.5
    assert figures["trainers"]["trl-best"]["ours_is_times_faster"] == 4.0
    assert figures["trainers"]["trl-best"]["reference_pairs_per_second"] == 2.0
    assert result(reference_seconds=0.01).reference_pairs_per_second == 0  # Everything was found stored.
    assert figures["loss_difference"] == pytest.approx(0.0003 / 0.6003)
    assert figures["matmul_gflops"] == 3.0
    assert figures["same_token_ids"]


def test_other_token_ids_are_noticed() -> None:
    runs = {name: [result(losses=[0.7], ids_sha256=name)] for name in ("ours", "trl-best")}
    assert not part("tables").same_ids(runs)


def test_a_missing_trainer_leaves_dashes_and_no_ratio() -> None:
    run = script("run")
    ours = [result(step_seconds=[1.0], losses=[0.7])]
    figures = run.figures_of({"ours": ours})
    assert figures["loss_difference"] is None
    text = run.to_markdown(figures, run.titles_for(16), "facts.")
    (row,) = [line for line in text.splitlines() if line.startswith("| ours")]
    assert row.count("–") == 4
    assert "8.000" in row


def test_trajectories_of_other_lengths_are_not_compared() -> None:
    with pytest.raises(ValueError, match="trajectories of 1 and 2 steps"):
        part("tables").largest_relative_difference([0.5], [0.5, 0.5])


def test_steps_are_sorted_by_their_level_without_the_first_turn() -> None:
    runs = [
        result(step_seconds=[50.0, 50.0, 1.0, 5.0, 3.0, 7.0]),
        result(step_seconds=[50.0, 50.0, 2.0, 6.0]),
    ]
    assert script("saturation").seconds_by_level(runs, (0.0, 45.0)) == {0.0: 2.0, 45.0: 6.0}


def test_moving_the_reference_moves_margins_step_by_step() -> None:
    job = part("jobs").Job("ours", "unused", pairs_per_step=2, margin_shifts=(0.0, 450.0))
    columns = {"ref_chosen_logps": [-10.0] * 5, "ref_rejected_logps": [-12.0] * 5}
    moved = part("arguments").shift_margins(Dataset.from_dict(columns), job)
    reference_margins = torch.tensor(moved["ref_chosen_logps"]) - torch.tensor(moved["ref_rejected_logps"])
    # The policy's margin less the reference's: what the reference loses, the margin gains.
    assert (2.0 - reference_margins).tolist() == [0.0, 0.0, 450.0, 450.0, 0.0]
    assert part("arguments").shift_margins("as it is", replace(job, margin_shifts=())) == "as it is"


# ---- worker processes ----


def test_a_failing_worker_is_reported_with_the_end_of_its_log(tmp_path: Path, capsys: Any) -> None:
    jobs = part("jobs")
    broken = jobs.Job("nobody", str(tmp_path / "none.json"))
    with pytest.raises(jobs.WorkerFailed, match=r"(?s)ended with code 1.*KeyError: 'nobody'"):
        jobs.launch(broken, tmp_path / "broken")
    assert jobs.run_rounds({"broken": broken}, tmp_path, rounds=3) == {"broken": []}
    assert capsys.readouterr().out.count("failed") == 1  # not tried again


def test_a_finished_result_is_resumed_only_for_the_very_same_job(tmp_path: Path) -> None:
    jobs = part("jobs")
    job = jobs.Job("nobody", "pairs.json", margin_shifts=(1.0,))
    (tmp_path / "job.json").write_text(json.dumps(asdict(job), indent=2))
    found = result(step_seconds=[1.0, 2.0])
    (tmp_path / "result.json").write_text(json.dumps(asdict(found)))
    assert jobs.Job.read(tmp_path / "job.json") == job
    assert jobs.launch(job, tmp_path, resume=True) == found
    with pytest.raises(jobs.WorkerFailed):
        jobs.launch(replace(job, beta=0.2), tmp_path, resume=True)
    assert not (tmp_path / "result.json").exists()


def test_trl_runs_at_its_best_as_documented_and_with_denormals(tmp_path: Path) -> None:
    run, options = script("run"), part("options")
    parser = options.make_parser("words")
    parser.add_argument("--only")
    workload = options.Workload([], tmp_path / "pairs.json")
    chosen = parser.parse_args(["--engine", "tokens_per_microbatch=512"])
    jobs = run.make_jobs(chosen, workload)
    assert {
        name: (job.device_batch, job.flush_denormal) for name, job in jobs.items() if job.trainer == "trl"
    } == {
        "trl-best": (1, True),
        "trl-documented": (8, True),
        "trl-denormals": (1, False),
    }
    assert jobs["ours"].engine == {"tokens_per_microbatch": 512}
    assert run.titles_for(16)["trl-documented"] == "TRL, 8 × 2"
    with pytest.raises(SystemExit, match="12 is no multiple of TRL's device batch, 8"):
        run.make_jobs(parser.parse_args(["--pairs-per-step", "12"]), workload)
    with pytest.raises(SystemExit, match=r"--only nobody: choose from ours, trl-best"):
        run.make_jobs(parser.parse_args(["--only", "ours,nobody"]), workload)


# ---- reports ----


def test_the_page_holds_the_parts_in_order_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("# Speed\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nMore.\n")
    (tmp_path / "sweep.md").write_text("sweep\n")
    (tmp_path / "training.md").write_text("training\n")
    script("performance_page").main(["--out", str(tmp_path), "--page", str(page)])
    assert page.read_text() == (
        "# Speed\n\n<!-- bench:begin -->\n\ntraining\n\nsweep\n\n<!-- bench:end -->\n\nMore.\n"
    )


def test_a_page_without_markers_or_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    reports = part("reports")
    with pytest.raises(SystemExit, match="each once"):
        reports.replace_block(f"{reports.END} {reports.BEGIN}", "new")
    with pytest.raises(SystemExit, match="run `make bench` first"):
        reports.measured_block(tmp_path)


def test_every_further_benchmark_has_its_place_on_the_page() -> None:
    assert {"training", "gpu", *script("more").BENCHMARKS} == set(part("reports").PARTS)


def test_the_machine_is_described_without_its_name() -> None:
    import platform

    words = part("machine").describe_machine()
    assert " cores, " in words
    assert platform.node() not in words


# ---- the GPU benchmark ----


def test_the_gpu_benchmark_refuses_to_start_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"needs a CUDA device.*run benchmarks/run\.py instead"):
        script("gpu").main([])


def gpu_options(folder: Path, **values: Any) -> argparse.Namespace:
    shared = {"model": "tiny", "steps": 2, "pairs_per_step": 8, "out": folder, "engine": [], "rounds": 1}
    return argparse.Namespace(**shared | {"laws": ["hh"], "checkpointing": False} | values)


BEST = {"attention": "flash_attention_2", "liger": True, "padding_free": True}


def test_the_gpu_benchmark_compares_bfloat16_runs_on_whole_steps(tmp_path: Path) -> None:
    gpu = script("gpu")
    jobs = gpu.make_jobs(gpu_options(tmp_path), "ultrafeedback", BEST)
    assert list(jobs) == ["ours", "TRL, 4 at a time", "TRL, 8 at a time", "matmul limit"]
    assert all(job.bf16 and job.max_length == 1024 for job in jobs.values())
    assert len(part("workload").load_pairs(jobs["ours"].pairs_file)) == 16
    # Without the slow first step: 8 pairs in 1 s against 8 pairs in 4 s; the limit takes half a second.
    ours, trl = result(num_pairs=16, step_seconds=[9.0, 1.0]), result(num_pairs=16, step_seconds=[4.0, 4.0])
    limit = result(num_pairs=16, step_seconds=[0.5, 0.5])
    found = {"ours": [ours], "TRL, 4 at a time": [trl], "TRL, 8 at a time": [], "matmul limit": [limit]}
    rows = gpu.rows_of_law("hh", found)
    assert [row[1] for row in rows] == ["8.00", "2.00", "–", "16.00"]
    assert [row[-2] for row in rows] == ["50 %", "12 %", "–", "100 %"]
    assert [row[-1] for row in rows] == ["–", "4.00 ×", "–", "–"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trl_gets_what_is_installed_and_both_recompute_or_neither(
    tmp_path: Path, checkpointing: bool
) -> None:
    jobs = script("gpu").make_jobs(gpu_options(tmp_path, checkpointing=checkpointing), "tiny", BEST)
    assert {job.checkpointing for job in jobs.values()} == {checkpointing}
    theirs = [job for job in jobs.values() if job.trainer == "trl"]
    assert all((job.attention, job.liger, job.padding_free) == tuple(BEST.values()) for job in theirs)
    # Neither FlashAttention nor Liger is installed where the tests run without a GPU.
    if not torch.cuda.is_available():
        here = script("gpu").best_options()
        assert (here["attention"], here["padding_free"]) == ("sdpa", False)


def test_the_gpu_tables_remark_says_what_trl_had_and_whether_both_trained_the_same(tmp_path: Path) -> None:
    gpu = script("gpu")
    ours = result(losses=[0.7, 0.6], ids_sha256="a")
    kept = {"hh: ours": [ours], "hh: TRL, 4 at a time": [result(losses=[0.7, 0.606], ids_sha256="a")]}
    said = gpu.remark_of(gpu_options(tmp_path, checkpointing=True), "Some GPU", BEST, kept)
    assert said.startswith("Some GPU; Llama of random weights, size tiny")
    assert "activations computed again on both sides" in said
    assert "flash_attention_2, Liger’s layers, padded rows (this version cannot lay them end to end)." in said
    assert said.endswith("The same token ids; losses of a step differ by at most 0.99 %.")
    kept["hh: TRL, 4 at a time"] = [result(losses=[0.7, 0.6], ids_sha256="b", padding_free=True)]
    said = gpu.remark_of(gpu_options(tmp_path), "Some GPU", BEST, kept)
    assert "rows end to end. NOT the same token ids" in said


def test_a_trainers_own_default_of_checkpointing_is_noticed() -> None:
    arguments, jobs = part("arguments"), part("jobs")
    model = torch.nn.Linear(1, 1)
    arguments.check_checkpointing(model, jobs.Job("trl", "unused"))
    with pytest.raises(RuntimeError, match="trl was to run with checkpointing on, and it is off"):
        arguments.check_checkpointing(model, jobs.Job("trl", "unused", checkpointing=True))
    model.gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="ours was to run with checkpointing off, and it is on"):
        arguments.check_checkpointing(model, jobs.Job("ours", "unused"))


# ---- everything, in small ----


@pytest.mark.slow
def test_all_workers_train_on_the_same_ids_to_the_same_losses(tmp_path: Path) -> None:
    arguments = ["--model", "tiny", "--pairs", "8", "--pairs-per-step", "4", "--rounds", "1"]
    script("run").main([*arguments, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["figures"]["same_token_ids"]
    assert record["figures"]["loss_difference"] <= 1e-4
    runs = {name: found[0] for name, found in record["results"].items()}
    assert set(runs) == {"ours", "trl-best", "trl-documented", "trl-denormals", "matmul-limit"}
    for name, run in runs.items():
        assert len(run["step_seconds"]) == 2, name
        assert run["computed_positions"] >= run["needed_tokens"], name
    assert runs["trl-best"]["ids_sha256"] == part("workload").ids_hash(
        part("workload").load_pairs(tmp_path / "pairs.json")
    )
    assert (tmp_path / "training.png").stat().st_size > 10_000
    assert "| ours " in (tmp_path / "training.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [[], ["--checkpointing"]])
def test_the_gpu_benchmark_runs_in_small_on_a_cpu(
    tmp_path: Path, checkpointing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "check_device", lambda: "a CPU")
    arguments = [
        "--model",
        "tiny",
        "--laws",
        "tiny",
        "--pairs-per-step",
        "4",
        "--steps",
        "2",
        "--rounds",
        "1",
    ]
    gpu.main([*arguments, *checkpointing, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["device"] == "a CPU"
    assert {name: len(runs) for name, runs in record["results"].items()} == {
        "tiny: ours": 1,
        "tiny: TRL, 4 at a time": 1,
        "tiny: matmul limit": 1,
    }
    assert record["results"]["tiny: ours"][0]["padding_free"]
    assert "The same token ids" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_the_further_benchmarks_run_in_small(tmp_path: Path) -> None:
    shared = ["--model", "tiny", "--pairs", "8", "--pairs-per-step", "4", "--out", str(tmp_path)]
    names = ("overhead", "saturation", "reference_pass")
    script("more").main([*shared, "--only", ",".join(names)])
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert set(records["overhead"]["shares"]) == {"controller", "margin log", "log entry"}
    assert min(records["overhead"]["shares"].values()) > 0
    assert len(records["overhead"]["results"]["ours-risk"][0]["betas"]) == 2
    losses = records["saturation"]["results"]["ours"][0]["losses"]
    # At beta × margin = -95 the loss is 95, at 95 it is nothing, without either log 2.
    assert losses[:4] == pytest.approx([0.6931, 0.0, 0.0, 95.0], abs=1e-3)
    assert records["reference_pass"]["times_faster_than_best"] > 0


@pytest.mark.slow
def test_a_sweep_scores_the_reference_once_on_both_sides(tmp_path: Path) -> None:
    shared = ["--model", "tiny", "--pairs", "8", "--pairs-per-step", "4", "--out", str(tmp_path)]
    script("sweep").main([*shared, "--betas", "0.1,0.5", "--uncached"])
    totals = json.loads((tmp_path / "sweep.json").read_text())["totals"]
    assert {name: total["reference_passes"] for name, total in totals.items()} == {
        "ours": 1,
        "trl": 1,
        "trl-uncached": 2,
    }


@pytest.mark.slow
def test_the_command_of_a_sweep_is_timed_with_its_one_reference_pass(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    shared = ["--model", model, "--pairs", "30", "--out", str(tmp_path)]
    shared += ["--betas", "0.1,0.5", "--rates", "1e-4", "dataset.quarantine_max_share=0.5"]
    script("sweep_command").main(shared)
    found = json.loads((tmp_path / "sweep_command.json").read_text())
    assert found["reference_passes"] == 1
    assert 0 < found["training_seconds"] + found["reference_seconds"] < found["total_seconds"]
    assert "| trainings " in (tmp_path / "sweep_command.md").read_text()
