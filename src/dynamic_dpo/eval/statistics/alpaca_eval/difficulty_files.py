"""Difficulties of instructions in files: those that AlpacaEval publishes, and those that were estimated here.

AlpacaEval publishes two tables, found on the hub as ``hf://datasets/tatsu-lab/alpaca_eval/FILE``:
``instruction_difficulty.csv`` holds a difficulty for each place in its set, ``df_gamed.csv`` also how its judge saw
the baseline when it wrote shorter and longer. With the second nothing of its model is left to be estimated.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynamic_dpo.errors import DataError
from dynamic_dpo.eval.statistics.alpaca_eval.length_control import BaselineAtOtherLengths
from dynamic_dpo.utils.files import write_json

_VALUE, _PLACE = "instruction_difficulty", "index"
_OF_THE_BASELINE = ("std_delta_len", "preference", "not_gamed_baseline")


class Difficulties(NamedTuple):
    """Difficulties of prompts, and what is known of the baseline beside them.

    Attributes:
        values: Prompt id to difficulty, in log-odds, higher where models do better.
        length_effect: Of an average model; ``None`` where that is not known.
        baseline: How the judge saw the baseline at other lengths; ``None`` where nobody asked it.
        num_models: From how many models they were estimated; ``None`` for those of a file.
    """

    values: Mapping[str, float]
    length_effect: float | None = None
    baseline: BaselineAtOtherLengths | None = None
    num_models: int | None = None


def write_difficulties(path: str | Path, difficulties: Difficulties) -> Path:
    """Write difficulties as JSON for `read_difficulties`, such as those of many models for the next one.

    Args:
        path: The file.
        difficulties: As estimated; what is known of the baseline at other lengths is not written.
    """
    value = {"length_effect": difficulties.length_effect, _VALUE: dict(difficulties.values)}
    return write_json(Path(path), value)


def read_difficulties(path: str | Path, prompts: Sequence[str]) -> Difficulties:
    """Read difficulties from what `write_difficulties` wrote, or from a table (CSV) of AlpacaEval's.

    Args:
        path: The file.
        prompts: Ids of all prompts of the set, in the set's order: AlpacaEval's tables name an instruction by its
            place, from 0.

    Raises:
        DataError: If the file cannot be read, is malformed, or names places beyond the prompts.
    """
    source = Path(path).expanduser()
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the difficulties {source} cannot be read: {error}") from None
    if source.suffix == ".json":
        return _of_json(text, source)
    return _of_table(text, source, prompts)


def _of_json(text: str, source: Path) -> Difficulties:
    try:
        value = json.loads(text)
        effect = value["length_effect"]
        values = {str(prompt): _finite(number) for prompt, number in value[_VALUE].items()}
        return Difficulties(values, None if effect is None else _finite(effect))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} holds no difficulties ({error!r}): expected an object with 'length_effect' and {_VALUE!r}, "
            "prompt ids to numbers"
        ) from None


def _of_table(text: str, source: Path, prompts: Sequence[str]) -> Difficulties:
    reader = csv.DictReader(text.splitlines())
    columns = [name for name in reader.fieldnames or () if name is not None]
    # As pandas writes an unnamed index or series.
    place_of = _PLACE if _PLACE in columns else next(iter(columns), "")
    value_of = _VALUE if _VALUE in columns else columns[-1] if len(columns) == 2 else ""
    if not value_of or value_of == place_of:
        raise DataError(
            f"{source} holds no difficulties: expected a table with the columns {_PLACE!r} and {_VALUE!r}, got "
            f"{columns}"
        )
    values: dict[str, float] = {}
    rows: list[tuple[float, float, float, int]] = []
    has_baseline = set(_OF_THE_BASELINE) <= set(columns)
    for number, row in enumerate(reader, start=2):
        try:
            place, value = int(float(row[place_of])), _finite(row[value_of])
            if not 0 <= place < len(prompts):
                raise DataError(
                    f"{source}, line {number}: there is no place {place} among the {len(prompts)} prompts: the table "
                    "is of another set, or the prompts are a part of it"
                )
            values.setdefault(prompts[place], value)
            if (
                has_baseline
                and row["not_gamed_baseline"].strip().lower() in ("false", "0", "0.0")
                and row["preference"]
            ):
                # AlpacaEval counts the baseline's characters less the other output's.
                rows.append((-_finite(row["std_delta_len"]), value, _share(row["preference"]), place))
        except (TypeError, ValueError) as error:
            raise DataError(f"{source}, line {number}: {error}") from None
    if not values:
        raise DataError(f"{source} holds no difficulties: the table has no rows")
    return Difficulties(values, None, _baseline(rows) if rows else None)


def _baseline(rows: Sequence[tuple[float, float, float, int]]) -> BaselineAtOtherLengths:
    longer, difficulty, preference, place = (np.array(column) for column in zip(*rows, strict=True))
    return BaselineAtOtherLengths(longer, difficulty, preference, place.astype(np.intp))


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {value!r}")
    return number


def _share(value: Any) -> float:
    number = _finite(value)
    if not 0 <= number <= 1:
        raise ValueError(f"'preference' must lie in [0, 1], got {value!r}")
    return number
