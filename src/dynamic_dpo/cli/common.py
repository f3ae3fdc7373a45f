"""What the commands share: arguments, logging, exit codes, and the folder of a run.

A user's mistake ends in one message and exit code 2, SIGTERM in 143, SIGINT in 130, SIGHUP in 129; a traceback means
a fault of ours.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_dpo.errors import CheckpointError, ConfigError, DynamicDPOError
from dynamic_dpo.runs.files import CHECKPOINT_PREFIX, CONFIG
from dynamic_dpo.utils.files import write_refused
from dynamic_dpo.utils.process_group import end_process, is_first_rank, process_group
from dynamic_dpo.utils.secrets import RedactingFormatter, redact, show_faults_redacted
from dynamic_dpo.utils.signals import Interrupted, stop_signals
from dynamic_dpo.utils.terminal import draws_lines

if TYPE_CHECKING:
    from dynamic_dpo.config.schema import TrainingConfig

logger = logging.getLogger("dynamic_dpo")


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command and turn its errors into messages and exit codes.

    Args:
        command: Takes the arguments, returns the exit code.
        argv: Arguments without the program's name; ``None`` takes them from the command line.

    Returns:
        The exit code: 0 done, 1 failed, 2 a mistake of the user's, 143 stopped by SIGTERM, 130 by SIGINT, 129 by
        SIGHUP.
    """
    _set_up_logging()
    _calm_bars()
    show_faults_redacted()
    try:
        with stop_signals():
            return command(sys.argv[1:] if argv is None else argv)
    except DynamicDPOError as error:
        if not error.said:
            print("\n".join(f"error: {line}" for line in redact(str(error)).splitlines()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(f"{stop or 'interrupted'}; what was saved stays, and resume continues from it", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    except OSError as error:
        advice = write_refused(error)
        if advice is None:
            raise
        print(
            f"error: {redact(str(error))}. Files written before are as they were; {advice}", file=sys.stderr
        )
        return 1


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes messages above a bar that is being drawn, instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")
        if bars is None:
            super().emit(record)
            return
        try:
            with bars.tqdm.external_write_mode(file=self.stream):
                self.stream.write(self.format(record) + self.terminator)
                self.flush()
        except Exception:
            self.handleError(record)


def _calm_bars() -> None:
    """Let bars of any library come to a log file twice a minute at most: there each drawing stays."""
    if not draws_lines(sys.stderr):
        os.environ.setdefault("TQDM_MININTERVAL", "30")


def _set_up_logging() -> None:
    handler = _AboveBars(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if is_first_rank() else logging.ERROR)


class _Help(argparse.HelpFormatter):
    """Wraps descriptions as usual, and leaves the lines behind them, examples and exit codes, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLE):
            return text
        return super()._fill_text(text, width, indent)


_EXAMPLE = "example:\n"


def make_parser(
    program: str, description: str, *, example: str, notes: str = "", add_help: bool = True
) -> argparse.ArgumentParser:
    """Return a parser whose help fits a screen and ends with an example.

    Args:
        program: Name of the command.
        description: What it does.
        example: A command line that shows its use.
        notes: Further lines.
        add_help: Whether ``--help`` is answered by the parser.
    """
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=f"{_EXAMPLE}  {example}" + (f"\n\n{notes}" if notes else ""),
        formatter_class=_Help,
        allow_abbrev=False,
        add_help=add_help,
    )


def configured_parser(
    program: str, description: str, *, example: str, notes: str = ""
) -> argparse.ArgumentParser:
    """Return a parser for ``--config FILE``, overrides and both forms of help, which `answer_help` answers."""
    parser = make_parser(program, description, example=example, notes=notes, add_help=False)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; configs/ holds commented ones"
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, then exit")
    parser.add_argument(
        "--help-all", action="store_true", help="show every key of the file, with type and meaning, then exit"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings over the file, e.g. risk_test.delta=0.05"
    )
    return parser


def answer_help(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, *, keys: Callable[[], str]
) -> bool:
    """Print what ``--help`` or ``--help-all`` asks for, and say whether one of them was given."""
    if arguments.help or arguments.help_all:
        print(parser.format_help())
    if arguments.help_all:
        print(keys())
    return bool(arguments.help or arguments.help_all)


def read_settings(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, keys: Callable[[], str]
) -> dict[str, Any] | None:
    """Parse the arguments and read the settings.

    Args:
        parser: From `configured_parser`.
        argv: The arguments.
        keys: Gives the description of all keys, for ``--help-all``.

    Returns:
        File and overrides as one mapping, unchecked; ``None`` after help was shown.

    Raises:
        ConfigError: If no file is given or it cannot be read.
    """
    from dynamic_dpo.config import apply_overrides, load_yaml

    arguments = parser.parse_args(list(argv))
    if answer_help(parser, arguments, keys=keys):
        return None
    if not arguments.config:
        raise ConfigError(f"{parser.prog} needs --config FILE; start from one in configs/")
    return apply_overrides(load_yaml(arguments.config), arguments.overrides)


def claim_output_folder(save_dir: str, *, resume: bool | str) -> bool | str:
    """Make sure the run may write to its folder, and say what it is to resume from.

    Args:
        save_dir: The run's folder.
        resume: ``False`` for a new run, ``True`` for the newest whole checkpoint in the folder, or a checkpoint's.

    Returns:
        A checkpoint's folder; ``True`` if there are checkpoints to choose from; ``False`` to start anew.

    Raises:
        ConfigError: If the folder is a file, or holds something and ``resume`` is false.
        CheckpointError: If there is nothing to resume from.
    """
    from dynamic_dpo.data.ledger import QUARANTINE_FILE, REPORT_FILE

    folder = Path(save_dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"the output folder {save_dir} is a file; choose another save_dir")
    # A run that stopped at its data leaves only the report on it, and may simply be started again.
    holds_something = folder.is_dir() and any(
        path.name not in (REPORT_FILE, QUARANTINE_FILE) for path in folder.iterdir()
    )
    if isinstance(resume, str):
        if not Path(resume).is_dir():
            raise CheckpointError(f"no checkpoint to resume from at {resume}")
        return resume
    if not resume:
        if holds_something:
            raise ConfigError(
                f"the output folder {save_dir} is not empty: resume the run in it with resume=true, choose another "
                "save_dir, or remove it"
            )
        return False
    if any(path.name.rsplit("-", 1)[1].isdecimal() for path in folder.glob(f"{CHECKPOINT_PREFIX}*")):
        return True
    # A run that was killed before its first checkpoint has left its settings, logs and perhaps half a checkpoint.
    was_begun = (folder / CONFIG).is_file() and not any(folder.glob("*.safetensors"))
    if holds_something and not was_begun:
        raise CheckpointError(
            f"{save_dir} holds no checkpoint to resume from; remove it or choose another save_dir"
        )
    logger.info("nothing to resume in %s yet: starting a new run", save_dir)
    return False


def run_training(
    program: str,
    description: str,
    train: Callable[[TrainingConfig], Any],
    argv: Sequence[str] | None,
    *,
    section: str,
    example: str,
) -> int:
    """Run a training command: read and check the settings, then hand them to ``train``.

    Args:
        program: Name of the command.
        description: What it does, for ``--help``.
        train: The training.
        argv: Arguments without the program's name; ``None`` takes them from the command line.
        section: Name of the settings' section with the training arguments.
        example: A command line, for ``--help``.

    Returns:
        The exit code, as `run_command` gives it. A launched rank that takes its arguments from the command line ends
        here instead.
    """

    def keys() -> str:
        from dynamic_dpo.config.key_reference import render_help

        return render_help()

    def command(arguments: Sequence[str]) -> int:
        from dynamic_dpo.config import get_training_config

        mistake: ConfigError | None = None
        group: dict[str, Any] = {}
        try:
            settings = read_settings(
                configured_parser(program, description, example=example), arguments, keys=keys
            )
            if settings is None:
                return 0
            config = get_training_config(settings)
            extra = getattr(config, section).extra
            group = {
                "timeout": extra.get("ddp_timeout", 1800.0),
                "backend": extra.get("ddp_backend"),
                "cpu": bool(extra.get("use_cpu")),
            }
        except ConfigError as error:
            # All ranks make it. It is raised where they know that, and one of them says it.
            mistake = error
        with process_group(**group):
            if mistake is not None:
                raise mistake
            from dynamic_dpo.trainers.ranks import clear_rank_errors

            with clear_rank_errors():
                train(config)
        return 0

    status = run_command(command, argv)
    return end_process(status) if argv is None else status
