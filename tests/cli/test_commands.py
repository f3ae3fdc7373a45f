"""The commands, run as a user runs them, on a tiny model in a folder and HH rows in a file."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamic_dpo.cli import evaluate, train_dpo, train_sft
from dynamic_dpo.cli import main as umbrella
from dynamic_dpo.cli.build_training import load_policy
from dynamic_dpo.config import dump_yaml, get_training_config
from dynamic_dpo.models.sources import file_fingerprint, resolve_model, weights_fingerprint
from dynamic_dpo.models.trained_adapter import find_policy
from dynamic_dpo.runs import files
from places import ROOT
from tiny import tiny_gpt2, tiny_llama, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NUM_ROWS = 40
CHAT_TEMPLATE = (
    "{% for m in messages %}w1 {{ m['role'] }} {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}w1 assistant {% endif %}"
)


def hh_rows(count: int = NUM_ROWS, *, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)

    def words() -> str:
        return " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randint(2, 8)))

    rows = []
    for _ in range(count):
        prompt = f"\n\nHuman: {words()}\n\nAssistant:"
        rows.append({"chosen": f"{prompt} {words()}", "rejected": f"{prompt} {words()}"})
    return rows


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    word_tokenizer(template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "train.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in hh_rows())
    return path


@pytest.fixture
def config_file(tmp_path: Path, model_folder: Path, rows_file: Path) -> Path:
    path = tmp_path / "config.yaml"
    settings: dict[str, Any] = {
        "policy_name": str(model_folder),
        "precision": "fp32",
        "dataset": {"dataset_name": str(rows_file), "subset": "train", "val_ratio": 0.1},
        "dpo_training": {
            "save_dir": str(tmp_path / "run"),
            "batch_size": 4,
            "gradient_accumulation": 2,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "log_steps": 1,
            "eval_steps": 2,
            "save_steps": 2,
            "max_steps": 4,
            "disable_tqdm": True,
        },
        "sft_training": {
            "save_dir": str(tmp_path / "sft"),
            "batch_size": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "log_steps": 1,
            "max_steps": 2,
            "disable_tqdm": True,
        },
        "risk_test": {"beta_warmup": 2},
    }
    path.write_text(dump_yaml(settings), encoding="utf-8")
    return path


def controller_lines(run: Path) -> list[dict[str, Any]]:
    text = (run / "logs" / "margins" / "controller.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def summary_of(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "run_summary.json").read_text(encoding="utf-8"))
    return summary


def test_train_dpo_leaves_a_model_a_record_and_the_margins(
    config_file: Path, tmp_path: Path, model_folder: Path
) -> None:
    assert train_dpo.main(["--config", str(config_file), "dpo_training.debug_samples=2"]) == 0
    run = tmp_path / "run"
    summary = summary_of(run)
    assert summary["optimizer_steps"] == 4
    assert summary["pairs_seen"] == 32
    assert summary["reference_computed"] == NUM_ROWS
    assert summary["reference_reused"] == 0
    assert summary["pairs_per_second"] > 0
    assert summary["peak_memory_bytes"] > 0
    method = summary["method"]
    assert (method["name"], method["mode"], method["scope"]) == ("risk", "paper", "micro")
    assert method["settings"]["beta_0"] == 0.1
    assert len(summary["config_hash"]) == 64

    lines = controller_lines(run)
    assert [line["update"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert summary["beta_final"] == lines[-1]["beta"] != 0.1

    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = AutoModelForCausalLM.from_pretrained(run)
    start = AutoModelForCausalLM.from_pretrained(model_folder)
    assert not torch.equal(trained.lm_head.weight, start.lm_head.weight)
    assert AutoTokenizer.from_pretrained(run).chat_template == CHAT_TEMPLATE
    assert (run / "config.yaml").is_file()
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert {"eval_loss", "eval_rewards/accuracies", "eval_margins/mean"} <= {
        k for line in history for k in line
    }
    samples = [json.loads(line) for line in (run / "debug" / "debug_samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    for side in ("chosen", "rejected"):
        labels = samples[0][side]["labels"]
        prompt_length = samples[0]["num_prompt_tokens"]
        assert labels[:prompt_length] == [-100] * prompt_length
        assert labels[prompt_length:] == samples[0][side]["input_ids"][prompt_length:]


def test_a_resumed_run_continues_beta_and_losses_as_if_never_stopped(
    config_file: Path, tmp_path: Path
) -> None:
    base = ["--config", str(config_file), "dpo_training.eval_steps=null"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train_dpo.main([*base, f"dpo_training.save_dir={whole}"]) == 0
    assert train_dpo.main([*base, f"dpo_training.save_dir={cut}"]) == 0
    for path in cut.glob("checkpoint-4"):
        path.rename(tmp_path / "set-aside")  # As if killed after step 2's checkpoint and step 4's margins.
    assert train_dpo.main([*base, f"dpo_training.save_dir={cut}", "dpo_training.resume=true"]) == 0
    assert controller_lines(cut) == controller_lines(whole)
    losses = [
        [
            line["loss"]
            for line in json.loads((run / "trainer_state.json").read_text())["log_history"]
            if "loss" in line
        ]
        for run in (whole, cut)
    ]
    assert losses[0] == losses[1]
    assert summary_of(cut)["pairs_seen"] == summary_of(whole)["pairs_seen"]


def test_a_second_run_reuses_the_reference_unless_what_is_scored_changes(
    config_file: Path, tmp_path: Path
) -> None:
    base = ["--config", str(config_file), "dpo_training.max_steps=1", "dpo_training.save_steps=null"]

    def counts(name: str, *overrides: str) -> tuple[int, int]:
        run = tmp_path / name
        assert train_dpo.main([*base, f"dpo_training.save_dir={run}", *overrides]) == 0
        summary = summary_of(run)
        return summary["reference_computed"], summary["reference_reused"]

    assert counts("first") == (NUM_ROWS, 0)
    assert counts("beta", "beta_update.beta_0=0.2", "dpo_training.learning_rate=1e-4") == (0, NUM_ROWS)
    assert counts("method", "method.name=dpo", "dpo_training.seed=7") == (0, NUM_ROWS)
    assert counts("lora", "peft.r=2") == (0, NUM_ROWS)
    computed, reused = counts("shorter", "dataset.max_len=9", "dataset.quarantine_max_share=1")
    assert computed > 0
    assert computed + reused <= NUM_ROWS


@pytest.mark.parametrize("method", ["dpo", "schedule", "risk"])
def test_every_method_trains_from_its_setting(config_file: Path, tmp_path: Path, method: str) -> None:
    assert (
        train_dpo.main(
            [
                "--config",
                str(config_file),
                f"method.name={method}",
                "method.mode=exact",
                "method.scope=step",
                "schedule.drift_per_1000=50",
                "margin_log.dpo_log_dir=logs/fixed",
                "dataset.chat_template=true",
            ]
        )
        == 0
    )
    summary = summary_of(tmp_path / "run")
    assert summary["method"]["name"] == method
    assert summary["controller_updates"] == 4
    assert Path(summary["margins_path"]).parent.name == ("fixed" if method == "dpo" else "margins")


def test_an_objective_and_a_reference_that_follows_come_from_settings(
    config_file: Path, tmp_path: Path
) -> None:
    changed = ["objective.add.sft=0.5", "objective.ld_alpha=0.5", "reference_sync.steps=1"]
    assert train_dpo.main(["--config", str(config_file), *changed]) == 0
    summary = summary_of(tmp_path / "run")
    assert summary["method"]["loss"]["objective"] == {"ld_alpha": 0.5, "added": {"sft": 0.5}}
    assert (summary["reference_computed"], summary["reference_reused"]) == (0, 0)
    assert [*(tmp_path / "run").glob(f"checkpoint-*/{files.REFERENCE_WEIGHTS}")]


def test_train_sft_trains_on_completions_only_and_saves_a_model(config_file: Path, tmp_path: Path) -> None:
    assert train_sft.main(["--config", str(config_file)]) == 0
    trained = resolve_model(str(tmp_path / "sft"))
    assert file_fingerprint(trained)
    history = json.loads((tmp_path / "sft" / "trainer_state.json").read_text())["log_history"]
    assert sum("loss" in line for line in history) == 2


def test_train_sft_names_settings_of_pairs_and_reads_the_templates(
    config_file: Path,
    model_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = ["dataset.max_len=300", "dataset.answer_tokens=all", "sft_training.max_steps=1"]
    assert train_sft.main(["--config", str(config_file), *changed]) == 0
    said = capsys.readouterr().err + caplog.text
    assert (
        "train-sft does not read dataset.max_len=300, dataset.answer_tokens='all', which are of pairs" in said
    )
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    (bare / "chat_template.jinja").unlink()
    for setting in ("dataset.chat_template=true", "dataset.chat_template_kwargs={enable_thinking: false}"):
        changed = [setting, f"policy_name={bare}", f"sft_training.save_dir={tmp_path / 'other'}"]
        assert train_sft.main(["--config", str(config_file), *changed]) == 2
        assert "no chat template" in capsys.readouterr().err + caplog.text


def test_help_lists_every_key_with_its_default(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_dpo.main(["--config", str(config_file), "--help-all"]) == 0
    text = capsys.readouterr().out
    for key in ("risk_test.lambda = 0.1", "beta_update.alpha = 0.005", "engine.head_chunk = 256"):
        assert key in text


@pytest.mark.parametrize("command", umbrella.COMMANDS)
def test_help_fits_a_screen_and_gives_an_example_that_parses(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        assert umbrella.main([command, "--help"]) == 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert len(lines) <= 42
    example = shlex.split(lines[lines.index("example:") + 1])
    assert example[0] == command or example[:2] == ["dynamic-dpo", command]
    # Every option of the example is one of the command's.
    shown = "\n".join(lines)
    assert all(word in shown for word in example if word.startswith("--"))


MISTAKES = {
    "unknown key": (["dpo_training.learnin_rate=1"], "did you mean dpo_training.learning_rate"),
    "out of range": (["risk_test.delta=1.2"], "risk_test.delta must lie in (0, 1), got 1.2"),
    "negative beta": (["beta_update.beta_0=-1"], "beta_update.beta_0"),
    "beta bounds": (["beta_update.beta_min=0.5"], "beta_update.beta_min"),
    "no such data": (["dataset.dataset_name=./nowhere.jsonl"], "nowhere.jsonl"),
    "no data named": (["dataset.dataset_name=null"], "dataset.dataset_name is required"),
    "no such model": (["policy_name=./nowhere"], "nowhere"),
    "no such package": (["policy_name=package:not_there"], "not_there"),
    "no such gguf": (["policy_name=./weights.gguf"], "weights.gguf"),
    "no GPU": (["precision=bf16"], "CUDA"),
    "no GPU for 4 bits": (["peft.load_in_4bit=true"], "CUDA"),
    "no checkpoint": (["dpo_training.resume=./checkpoint-9"], "checkpoint-9"),
    "shared layout refused": (
        ["engine.layout=shared", "engine.attn_implementation=flex_attention"],
        "block mask",
    ),
    "all too long": (["dataset.max_len=2"], "prompt_fills_max_length"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    case: str, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, expected = MISTAKES[case]
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert train_dpo.main(["--config", str(config_file), *overrides]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_missing_config_and_missing_file_are_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_dpo.main([]) == 2
    assert train_dpo.main(["--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_output_folder_that_is_a_file_or_taken_is_refused(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("mine")
    assert train_dpo.main(["--config", str(config_file)]) == 2
    assert "is a file" in capsys.readouterr().err
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    assert train_dpo.main(["--config", str(config_file), f"dpo_training.save_dir={taken}"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (
        train_dpo.main(
            ["--config", str(config_file), f"dpo_training.save_dir={taken}", "dpo_training.resume=true"]
        )
        == 2
    )
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_half_broken_rows_are_quarantined_by_reason_and_named(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = hh_rows(30)
    bad: list[Any] = [
        {"chosen": 7, "rejected": "\n\nHuman: w1\n\nAssistant: w2"},
        {"chosen": "\n\nHuman: w1\n\nAssistant: w2", "rejected": "\n\nHuman: w9\n\nAssistant: w3"},
        {"chosen": "\n\nHuman: w1\n\nAssistant: ", "rejected": "\n\nHuman: w1\n\nAssistant: w3"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*good, *bad]) + "{half a line", encoding="utf-8"
    )
    base = ["--config", str(config_file), f"dataset.dataset_name={path}"]
    assert train_dpo.main(base) == 2
    assert "quarantine_max_share" in capsys.readouterr().err
    assert train_dpo.main([*base, "dataset.quarantine_max_share=0.5"]) == 0
    reasons = [
        json.loads(line)["reason"]
        for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert len(reasons) == 4
    assert len(set(reasons)) == 4


def test_policy_and_reference_with_other_tokenizers_are_refused(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    tiny_gpt2().save_pretrained(other)
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    assert train_dpo.main(["--config", str(config_file), f"ref_name={other}"]) == 2
    assert "different tokenizers" in capsys.readouterr().err


def test_a_reference_of_its_own_is_scored_and_let_go(config_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_llama(seed=3).save_pretrained(other)
    word_tokenizer().save_pretrained(other)
    assert train_dpo.main(["--config", str(config_file), f"ref_name={other}"]) == 0
    lines = controller_lines(tmp_path / "run")
    assert summary_of(tmp_path / "run")["reference_computed"] == NUM_ROWS
    margins = json.loads(
        (tmp_path / "run" / "logs" / "margins" / "margins.jsonl").read_text().splitlines()[0]
    )
    assert abs(margins["mean"]) > 0.01  # Not the policy's own start: margins are not zero at step 1.
    assert len(lines) == 8


def test_evaluate_names_a_misspelt_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evaluation.yaml"
    path.write_text("models: {base: gpt2}\n")
    assert evaluate.main(["--config", str(path), "generation.tempratur=1"]) == 2
    assert "generation.temperature" in capsys.readouterr().err
    assert evaluate.main(["--help"]) == 0


def test_umbrella_knows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert umbrella.main([]) == 0
    assert "train-dpo" in capsys.readouterr().out
    assert umbrella.main(["--version"]) == 0
    assert capsys.readouterr().out == "dynamic-dpo 0.2.0\n"
    assert umbrella.main(["fly"]) == 2
    assert umbrella.main(["train-dpo", "--help"]) == 0


def test_fingerprint_follows_the_weights(model_folder: Path, tmp_path: Path) -> None:
    ours = file_fingerprint(resolve_model(str(model_folder)))
    other = tmp_path / "other"
    tiny_llama(seed=1).save_pretrained(other)
    assert ours != file_fingerprint(resolve_model(str(other)))
    assert weights_fingerprint(tiny_llama()) == weights_fingerprint(tiny_llama())
    assert weights_fingerprint(tiny_llama()) != weights_fingerprint(tiny_llama(seed=1))


def test_metrics_reach_tensorboard_where_asked(config_file: Path, tmp_path: Path) -> None:
    assert train_dpo.main(["--config", str(config_file), "dpo_training.report=tensorboard"]) == 0
    events = list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert len(events) == 1
    assert b"rewards/margins" in events[0].read_bytes()


def test_samples_reach_the_folder_the_report_and_tensorboard(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["sampling.max_new_tokens=4", "sampling.num_prompts=2", "dpo_training.report=tensorboard"]
    scorer = 'sampling.scorers={"length": {"function": "builtins:len"}}'
    assert train_dpo.main(["--config", str(config_file), *settings, scorer]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 2, 2, 4, 4]
    assert all(row["num_tokens"] <= 4 for row in rows)
    assert [row["scores"] for row in rows] == [{"length": len(row["text"])} for row in rows]
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    assert b"samples/prompt 2" in events.read_bytes()
    assert rows[-1]["text"].encode() in events.read_bytes()
    assert summary_of(tmp_path / "run")["sampling"]["outputs"] == 6
    assert umbrella.main(["report", str(tmp_path / "run")]) == 0
    page = Path(capsys.readouterr().out.strip().splitlines()[-1]).read_text(encoding="utf-8")
    assert "Samples while training" in page
    assert rows[-1]["text"] in page


def test_texts_to_write_behind_are_turns_of_a_chat_where_rows_are(
    config_file: Path, tmp_path: Path, model_folder: Path
) -> None:
    settings = ['sampling.prompts=["w5 w6"]', "sampling.max_new_tokens=3", "dpo_training.max_steps=1"]
    assert train_dpo.main(["--config", str(config_file), *settings, "dataset.chat_template=true"]) == 0
    (row, _) = (json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines())
    assert row["prompt"] == "w1 <unk> w5 w6 </s> w1 <unk>"
    plain = [*settings, f"dpo_training.save_dir={tmp_path / 'plain'}"]
    assert train_dpo.main(["--config", str(config_file), *plain]) == 0
    row = json.loads((tmp_path / "plain" / "samples.jsonl").read_text().splitlines()[0])
    assert row["prompt"] == "w5 w6"


def test_nowhere_to_report_to_is_none_or_null(config_file: Path, tmp_path: Path) -> None:
    assert train_dpo.main(["--config", str(config_file), "dpo_training.report=null"]) == 0
    assert not list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_missing_eos_and_missing_template_are_mistakes_that_say_what_to_do(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    tiny_llama().save_pretrained(bare)
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(bare)
    assert train_dpo.main(["--config", str(config_file), f"policy_name={bare}"]) == 2
    assert "eos" in capsys.readouterr().err
    assert (
        train_dpo.main(["--config", str(config_file), f"policy_name={bare}", "dataset.chat_template=true"])
        == 2
    )
    assert "chat_template" in capsys.readouterr().err


def test_turns_of_100_000_characters_are_cut_not_fatal(config_file: Path, tmp_path: Path) -> None:
    rows = hh_rows(20)
    for row in rows[:3]:
        row["chosen"] += " w7" * 33_000
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = [f"dataset.dataset_name={path}", "dataset.max_len=32", "dpo_training.max_steps=1"]
    assert train_dpo.main(["--config", str(config_file), *arguments]) == 0
    assert summary_of(tmp_path / "run")["reference_computed"] == 20


def test_no_reference_is_scored_for_a_validation_set_that_is_never_looked_at(
    config_file: Path, tmp_path: Path
) -> None:
    assert train_dpo.main(["--config", str(config_file), "dpo_training.eval_steps=null"]) == 0
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert 0 < summary_of(tmp_path / "run")["reference_computed"] < NUM_ROWS, report


def test_report_is_written_from_the_folder_of_a_run(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_dpo.main(["--config", str(config_file)]) == 0
    capsys.readouterr()
    assert umbrella.main(["report", str(tmp_path / "run"), "--title", "A tiny run"]) == 0
    page = Path(capsys.readouterr().out.strip().splitlines()[-1])
    assert "A tiny run" in page.read_text(encoding="utf-8")
    assert umbrella.main(["report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_every_number_of_the_log_and_every_file_of_a_run_is_documented(
    config_file: Path, tmp_path: Path
) -> None:
    more = [
        "dpo_training.eval_steps=1",
        "dpo_training.keep_best.metric=eval_loss",
        "dpo_training.debug_samples=1",
    ]
    assert train_dpo.main(["--config", str(config_file), "risk_test.beta_warmup=1", *more]) == 0
    run = tmp_path / "run"
    log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    metrics = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    names = {
        name.removeprefix("eval_") if f"`{name}`" not in metrics else name for entry in log for name in entry
    }
    assert {"risk/tau", "margins/p90", "speed/tflop_per_second"} <= names
    assert {name for name in names if f"`{name}`" not in metrics} == set()
    files_page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    found = {path.relative_to(run).parts[0] for path in run.rglob("*")}
    # Of models and tokenizers the page names some.
    known = {
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "training_args.bin",
    }
    undocumented = {
        name
        for name in found - known
        if f"`{name}`" not in files_page
        and f"`{name}/" not in files_page
        and not name.startswith("checkpoint-")
    }
    assert undocumented == set()


def test_the_frozen_base_of_an_adapter_is_loaded_in_the_runs_precision(model_folder: Path) -> None:
    def dtypes(precision: str, **sections: Any) -> set[torch.dtype]:
        config = get_training_config({"policy_name": str(model_folder), "precision": precision, **sections})
        model = load_policy(config, find_policy(config.policy_name))
        return {parameter.dtype for parameter in model.parameters()}

    assert dtypes("bf16", peft={"r": 2}) == {torch.bfloat16}
    assert dtypes("bf16") == {torch.float32}
    assert dtypes("fp32", peft={"r": 2}) == {torch.float32}


def test_adapter_alone_is_saved_and_checked(config_file: Path, tmp_path: Path) -> None:
    assert train_dpo.main(["--config", str(config_file), "peft.r=2", "peft.lora_alpha=4"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names


def test_train_dpo_writes_the_best_weights_where_it_keeps_them(config_file: Path, tmp_path: Path) -> None:
    # At such a rate every step makes held-out pairs worse: the best evaluation is the first.
    settings = [
        "dpo_training.keep_best.patience=1",
        "dpo_training.learning_rate=0.3",
        "dpo_training.eval_steps=1",
    ]
    kept, first = tmp_path / "run", tmp_path / "first"
    assert train_dpo.main(["--config", str(config_file), *settings, "dpo_training.max_steps=6"]) == 0
    record = summary_of(kept)["keep_best"]
    assert (record["metric"], record["patience"], record["stopped_early"]) == ("eval_loss", 1, True)
    steps, ended = record["step"], record["last_step"]
    assert summary_of(kept)["optimizer_steps"] == ended == steps + 1 < 6

    # Warm-up and schedule are constant: as many steps as were kept are a run of their own.
    more = [f"dpo_training.max_steps={steps}", f"dpo_training.save_dir={first}"]
    constant = "dpo_training.lr_scheduler_type=constant"
    assert train_dpo.main(["--config", str(config_file), *settings[1:], *more, constant]) == 0
    again = tmp_path / "again"
    arguments = [*settings, f"dpo_training.save_dir={again}", "dpo_training.max_steps=6", constant]
    assert train_dpo.main(["--config", str(config_file), *arguments]) == 0
    assert summary_of(again)["keep_best"]["step"] == steps

    from safetensors.torch import load_file

    for name, weight in load_file(first / "model.safetensors").items():
        assert torch.equal(load_file(again / "model.safetensors")[name], weight), name
