"""``dynamic-dpo merge``: from a run's checkpoint, sharded or not, or an adapter, to an ordinary model folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dynamic_dpo.cli.common import make_parser, run_command
from dynamic_dpo.errors import ConfigError

DESCRIPTION = (
    "Make an ordinary model folder of a run's checkpoint, or of an adapter and its base, on one process and without "
    "a GPU. The final model of a run that came to its end needs no merging, unless it is an adapter that is to "
    "become a model (--into-base)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_command, argv)


def _command(argv: Sequence[str]) -> int:
    parser = make_parser(
        "dynamic-dpo merge", DESCRIPTION, example="dynamic-dpo merge runs/dpo/checkpoint-200 runs/dpo-merged"
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="RUN/checkpoint-N, or the folder of an adapter"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist, or be empty")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that was trained, where the checkpoint has no config.json or tokenizer",
    )
    parser.add_argument(
        "--into-base",
        action="store_true",
        help="merge an adapter into its base model, in float32, which takes memory for the whole of it",
    )
    parser.add_argument(
        "--file-gb",
        type=float,
        default=5.0,
        metavar="GB",
        help="largest weight file; about twice as much memory is needed; default 5",
    )
    options = parser.parse_args(list(argv))
    if not options.file_gb > 0:
        raise ConfigError(f"--file-gb must be above 0, got {options.file_gb:g}")
    from dynamic_dpo.trainers.checkpoints.merging import merge_checkpoint

    merged = merge_checkpoint(
        options.checkpoint,
        options.out,
        model=options.model,
        into_base=options.into_base,
        file_bytes=int(options.file_gb * 1e9),
    )
    files = "1 file" if merged.num_files == 1 else f"{merged.num_files} files"
    source = "put together from shards"
    if not merged.was_sharded:
        source = f"copied: {options.checkpoint} is not sharded"
    if options.into_base:
        source = "its adapter merged into the base"
    print(
        f"{options.out} holds the {merged.kind} of {options.checkpoint}, {source}; {merged.num_tensors} tensors, "
        f"{merged.num_bytes / 1e9:.3g} GB in {files}, read back and compared"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
