"""Shows in docs/watching.md what train-dpo looks like: on terminals of 60 and 120 columns, and in a log file.

``PYTHONPATH=src python scripts/capture_terminal.py`` trains a tiny model of random weights three times, less than a
minute in all, and writes what the screen showed between the page's markers.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "watching.md"
MARKERS = "<!-- terminal: {} -->\n", "<!-- end of terminal -->"
STEPS = 40
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}


def prepare(folder: Path) -> list[str]:
    """Write a tiny model and rows, and return the words of the command."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers_evaluation import write_hh_rows
    from tiny import tiny_llama, word_tokenizer

    tiny_llama().save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    write_hh_rows(folder / "rows.jsonl", 200)
    settings = {
        "policy_name": "model",
        "precision": "fp32",
        "dataset.dataset_name": "rows.jsonl",
        "dataset.subset": "train",
        "dpo_training.max_steps": STEPS,
        "dpo_training.batch_size": 4,
        "dpo_training.log_steps": 10,
        "dpo_training.eval_steps": 20,
        "dpo_training.learning_rate": 0.0003,
        "risk_test.beta_warmup": 5,
    }
    (folder / "config.yaml").write_text("{}\n")
    words = [sys.executable, "-m", "dynamic_dpo.cli.main", "train-dpo", "--config", "config.yaml"]
    return [*words, *(f"{key}={value}" for key, value in settings.items())]


def screen(text: str, columns: int) -> list[str]:
    """Return the lines that a terminal shows after a text with carriage returns and cursor movements."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= 1
        elif part.startswith("\x1b"):
            continue  # Colours.
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    wrapped = [line[i : i + columns] for line in lines for i in range(0, max(len(line), 1), columns)]
    return [line.rstrip() for line in wrapped]


def on_a_terminal(words: list[str], folder: Path, columns: int) -> tuple[str, str]:
    """Run the command on a terminal; return the screen in the middle of the training, and at its end."""
    there, here = pty.openpty()
    fcntl.ioctl(here, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [*words, f"dpo_training.save_dir=run-{columns}"],
        cwd=folder, env=environment, stdout=here, stderr=here, stdin=here,
    )  # fmt: skip
    os.close(here)
    text, middle = b"", ""
    while True:
        try:
            part = os.read(there, 65536)
        except OSError:
            break
        if not part:
            break
        text += part
        shown = text.decode(errors="replace")
        if not middle and f"{STEPS * 3 // 4}/{STEPS}" in shown:
            middle = "\n".join(screen(shown, columns)).rstrip()
    if process.wait():
        sys.exit(text.decode(errors="replace"))
    return middle, "\n".join(screen(text.decode(errors="replace"), columns)).rstrip()


def in_a_file(words: list[str], folder: Path) -> str:
    """Run the command with its output in a file and return that."""
    path = folder / "log.txt"
    with path.open("w") as file:
        done = subprocess.run(
            [*words, "dpo_training.save_dir=run-file"],
            cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file, check=False,
        )  # fmt: skip
    if done.returncode:
        sys.exit(path.read_text())
    # What a bar has drawn over itself in a file is lines of their own there.
    return path.read_text().replace("\r", "\n").replace("\n\n", "\n").strip()


def main() -> None:
    """Capture all three and write them into the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = prepare(folder)
        captures = {}
        for columns in (120, 60):
            middle, end = on_a_terminal(words, folder, columns)
            captures[f"{columns} columns"] = f"{middle}\n\n… and at the end:\n\n{last_lines(end)}"
        captures["a log file"] = in_a_file(words, folder)
    page = PAGE.read_text(encoding="utf-8")
    for title, text in captures.items():
        start, end = MARKERS[0].format(title), MARKERS[1]
        before, found, rest = page.partition(start)
        if not found:
            sys.exit(f"{PAGE} has no marker {start.strip()}")
        page = f"{before}{start}```text\n{text}\n```\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE}: {', '.join(captures)}")


def last_lines(text: str) -> str:
    """Return what stands below the last line about the model's files."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("step ")), None)
    if first is None:
        sys.exit(f"no evaluation was shown:\n{text}")
    return "\n".join(lines[first:])


if __name__ == "__main__":
    main()
