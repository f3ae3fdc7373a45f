"""Secrets planted wherever a run could pick them up: none reaches a file, a log line or a message."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from bounds_of_time import NO_END
from dynamic_dpo.cli.common import run_command
from dynamic_dpo.config import apply_overrides, dump_yaml, get_training_config, load_yaml
from dynamic_dpo.data.ledger import Ledger
from dynamic_dpo.errors import ConfigError, ModelError
from dynamic_dpo.eval.notes import StageNotes
from dynamic_dpo.runs.summary import write_run_summary
from dynamic_dpo.trainers.arguments import whole_step_arguments
from dynamic_dpo.utils.secrets import HIDDEN, RedactingFormatter, is_secret_name, redact, redact_values
from tiny import training_arguments

# What looks like a secret wherever it stands: 20 of them, none a real one.
BY_LOOKS = [
    "hf_" + "aB3" * 11,
    "hf_" + "Q" * 34,
    "sk-abc123def456",
    "sk-proj-" + "x1_Y-" * 8,
    "sk-ant-api03-" + "Zz9" * 12,
    "sk-" + "abcdefghij" * 3,
    "ghp_" + "A1b2" * 9,
    "gho_" + "C3d4" * 9,
    "github_pat_" + "11ABC_def" * 4,
    "glpat-" + "a-B_3" * 4,
    "gsk_" + "w0W" * 12,
    "npm_" + "k2K" * 12,
    "r8_" + "p7P" * 12,
    "xoxb-" + "1234567890-" * 2 + "abc",
    "pypi-" + "AgEIcHlwaS5vcmc" * 2,
    "AKIA" + "ABCD1234" * 2,
    "AIza" + "SyD-9_k" * 5,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    "Bearer abcd1234efgh",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nbm9wZQ==\n-----END RSA PRIVATE KEY-----",
]
# What is a secret because of the name it stands under: 18.
BY_NAME = {
    name: f"Plain-words-{number}-only"
    for number, name in enumerate(
        [
            "api_key", "apiKey", "OPENAI_API_KEY", "hub_token", "token", "access_token", "auth-token", "password",
            "db_password", "passwd", "secret", "client_secret", "private_key", "secret_key", "credentials",
            "authorization", "wandb_api_key", "passphrase",
        ]
    )
}  # fmt: skip
# Values of environment variables: 12.
BY_ENVIRONMENT = {
    name: f"environment value {number} of nothing special"
    for number, name in enumerate(
        [
            "OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY",
            "ANTHROPIC_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "MLFLOW_PASSWORD",
            "AZURE_CLIENT_SECRET", "COMET_API_KEY",
        ]
    )
}  # fmt: skip
LEFT_ALONE = {
    "cls_token": "[CLS]",
    "pad_token": "<|endoftext|>",
    "eos_token": "</s>",
    "image_token": "<image_placeholder>",
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "max_tokens": 512,
    "max_new_tokens": 256,
    "tokens_per_microbatch": 1024,
    "token_ids": [1, 2, 3],
    "bos_token_id": 1,
    "num_completion_token": "123456789",
    "sort_key": "content_hash_of_prompt",
    "key": "a-key-of-a-mapping",
    "policy_name": "meta-llama/Llama-3.2-1B-Instruct",
    "save_dir": "runs/task-sk-learn/hf_models_of_mine",
    "monkey": "secretary-bird",
    "files_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "url": "https://judge.example:8000/v1",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in BY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return [*BY_LOOKS, *BY_NAME.values(), *BY_ENVIRONMENT.values()]


def everything(planted: list[str]) -> dict[str, object]:
    """A tree in which every secret stands at least once."""
    return {
        "by_looks": [f"text before {value} and after" for value in BY_LOOKS],
        "nested": {"deeper": [BY_NAME, {"token": ["Plain-words-4-only"]}]},
        "environment": {f"note_{n}": f"({value})" for n, value in enumerate(BY_ENVIRONMENT.values())},
        "as_keys": dict.fromkeys(planted[:20], 1),
    }


def lines_of(planted: list[str]) -> list[str]:
    named = [f"{name}{sign}{value}" for name, value in BY_NAME.items() for sign in ("=", ": ", '": "', "='")]
    return [*(f"the server said {value!s}!" for value in planted if value not in BY_NAME.values()), *named]


def leaks(planted: list[str], text: str) -> list[str]:
    """Return the secrets of which a telling part stands in a text."""
    parts = {
        value: value.replace("Bearer ", "").split("\n")[-1 if "\n" not in value else 1] for value in planted
    }
    return [value for value, part in parts.items() if part in text]


def test_fifty_secrets_are_planted(planted: list[str]) -> None:
    assert len(set(planted)) == 50
    assert leaks(planted, "\n".join(planted)) == planted


def test_no_planted_secret_is_in_any_file_of_a_run(planted: list[str], tmp_path: Path) -> None:
    settings = everything(planted)
    write_run_summary(
        tmp_path, {"facts": settings}, pairs_trained=1, training_seconds=1.0, config={"a": settings}
    )
    with Ledger(1.0, tmp_path) as ledger:
        ledger.write_report(settings)
    StageNotes(tmp_path).put("judge", settings, settings)
    texts = [path.read_text() for path in tmp_path.iterdir()]
    assert len(texts) == 3
    assert leaks(planted, "\n".join(texts)) == []


@pytest.mark.parametrize("number", range(50))
def test_a_saved_configuration_holds_no_secret_and_loads(
    number: int, planted: list[str], tmp_path: Path
) -> None:
    secret = planted[number]
    name = next((name for name, value in BY_NAME.items() if value == secret), None)
    text = secret if name is None else f"{name}={secret}"
    config = get_training_config(
        {
            "policy_name": f"models/{text}",
            "dataset": {"dataset_name": f"https://me:{secret}@example.org/rows?x={text}"},
            "dpo_training": {
                "run_name": text.replace("\n", " "),
                "lr_scheduler_kwargs": {name or "note": secret},
            },
        }
    )
    config.save(tmp_path / "config.yaml")
    assert leaks([secret], (tmp_path / "config.yaml").read_text()) == []
    saved = get_training_config(load_yaml(tmp_path / "config.yaml"))
    assert saved.risk_test == config.risk_test
    assert HIDDEN in saved.policy_name
    # What runs is the configuration itself, not the copy that was saved.
    assert secret in config.policy_name


def test_no_planted_secret_is_in_a_log_line_or_its_traceback(planted: list[str]) -> None:
    formatter = RedactingFormatter("%(message)s")
    for line in lines_of(planted):
        try:
            raise ValueError(line)
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, __file__, 1, "%s", (line,), sys.exc_info())
        written = formatter.format(record)
        assert HIDDEN in written
        # The traceback quotes the source line `raise ValueError(line)`, which holds no secret.
        assert leaks(planted, written) == []


def test_a_command_prints_errors_without_secrets(
    planted: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    lines = lines_of(planted)

    def failing(argv: object) -> int:
        logging.getLogger("dynamic_dpo").warning("%s", "\n".join(lines))
        raise ModelError("\n".join(lines))

    assert run_command(failing, []) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") >= 50
    assert leaks(planted, shown) == []


def test_the_traceback_of_a_fault_is_printed_without_secrets(tmp_path: Path) -> None:
    program = (
        "from dynamic_dpo.cli.common import run_command\n"
        "def command(argv): raise RuntimeError('token=' + 'hf_' + 'x1' * 12)\n"
        "run_command(command, [])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert ended.returncode == 1
    assert "RuntimeError: token=[key hidden]" in ended.stderr
    assert "x1x1" not in ended.stderr


@pytest.mark.parametrize("secret", ["hf_" + "a1" * 15, "sk-abc123def456"])
def test_a_refused_setting_is_not_repeated_with_its_secret(secret: str) -> None:
    with pytest.raises(ConfigError) as wrong_type:
        get_training_config({"policy_name": "m", "risk_test": {"delta": secret}})
    with pytest.raises(ConfigError) as unknown:
        get_training_config({"policy_name": "m", f"key{secret}": 1, secret: {}})
    with pytest.raises(ConfigError) as no_sign:
        apply_overrides({}, [f"--judge.{secret}"])
    with pytest.raises(ConfigError) as below_text:
        apply_overrides({"a": secret}, ["a.b=1"])
    for error in (wrong_type, no_sign, below_text):
        assert HIDDEN in str(error.value)
    assert not any(secret in str(error.value) for error in (wrong_type, no_sign, below_text))
    assert "risk_test.delta" in str(wrong_type.value)
    assert f" {secret}" not in str(unknown.value)


def test_the_pickled_training_arguments_hold_no_hub_token(tmp_path: Path) -> None:
    token = "hf_" + "Tok" * 11
    args, _ = whole_step_arguments(training_arguments(tmp_path, hub_token=token))
    assert args.hub_token == token  # It still opens the hub,
    torch.save(args, tmp_path / "training_args.bin")
    saved = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert token.encode() not in saved  # but is in no file.
    assert pickle.loads(pickle.dumps(args.hub_token)) == HIDDEN
    assert token not in repr(args) + str(args) + args.to_json_string()


def test_what_only_resembles_a_secret_is_left_alone() -> None:
    assert redact_values(LEFT_ALONE) == LEFT_ALONE
    for name, value in LEFT_ALONE.items():
        for line in (f"{name}={value}", f"{name}: {value}", f"'{name}': '{value}'"):
            assert redact(line) == line
    assert not any(map(is_secret_name, LEFT_ALONE))


def test_a_tokenizer_written_into_a_configuration_stays_as_it_is() -> None:
    text = dump_yaml({name: value for name, value in LEFT_ALONE.items() if "token" in name})
    assert redact(text) == text
    assert redact(json.dumps(LEFT_ALONE)) == json.dumps(LEFT_ALONE)


def test_short_values_of_the_environment_do_not_eat_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("SERVICE_TOKEN_FILE", "/run/credentials/token")
    monkeypatch.setenv("GITHUB_TOKEN", "/run/secrets/github")
    text = "none of /run/secrets/github and /run/credentials/token is one"
    assert redact(text) == text


def test_redaction_of_a_long_text_is_quick() -> None:
    text = "a" * 200_000 + " = " + "x-" * 50_000 + "eyJ" * 20_000 + "://" * 20_000 + " key=" * 20_000
    start = time.process_time()
    redact(text)
    assert time.process_time() - start < NO_END


def test_a_redacted_tree_shares_nothing_with_its_source() -> None:
    source = {"a": [{"b": "c"}]}
    copy = redact_values(source)
    copy["a"][0]["b"] = "changed"
    assert source == {"a": [{"b": "c"}]}
    assert tempfile.gettempdir() == redact(tempfile.gettempdir())
