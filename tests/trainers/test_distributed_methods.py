"""Methods that decide on all ranks' pairs: two ranks decide, draw and train as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers_ranks import SECONDS, launched


@pytest.mark.timeout(2 * SECONDS + 30)
def test_two_ranks_draw_and_train_as_one(tmp_path: Path) -> None:
    first, second = launched("distributed_methods.py", tmp_path / "two", 4, ranks=2)
    (alone,) = launched("distributed_methods.py", tmp_path / "one", 8, ranks=1)
    assert first == second
    for name, expected in alone.items():
        ours = first[name]
        assert ours["norms"] == pytest.approx(expected["norms"], rel=1e-10), name
        for key, value in expected["state"].items():
            assert ours["state"][key] == (
                value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
            ), key
