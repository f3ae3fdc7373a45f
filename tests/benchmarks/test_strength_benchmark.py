"""The benchmark of strengths counts in evaluations of the same pairs, for all weights and for an adapter."""

from __future__ import annotations

import re
import runpy

import pytest

from places import ROOT


def test_the_benchmark_of_strengths_prints_a_ratio_for_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "strength.py"))["main"]
    main(["--hidden", "64", "--layers", "1", "--vocabulary", "200", "--pairs", "4", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["all weights", "adapter"]
    for line in lines:
        seconds = re.findall(r"([\d.]+) s[, ]|([\d.]+) evaluations", line)
        assert len(seconds) == 3
        assert float(seconds[-1][1]) > 0
