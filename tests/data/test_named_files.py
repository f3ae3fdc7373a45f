"""One file by its name: a path, a file on the hub or one of an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
import pytest

from dynamic_dpo.data.named_files import local_file
from dynamic_dpo.data.sources import load_rows
from dynamic_dpo.errors import DataError


def test_a_file_of_an_installed_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "carrier_of_rows"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "rows.jsonl").write_text('{"prompt": "Hi"}\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert local_file("package:carrier_of_rows/rows.jsonl") == folder / "rows.jsonl"
    assert len(load_rows("package:carrier_of_rows/rows.jsonl")) == 1
    assert "carrier_of_rows" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package_here/x.txt", "no installed package 'no_such_package_here'"),
        ("package:dynamic_dpo/no/such.txt", "the package dynamic_dpo has no such file"),
        ("package:dynamic_dpo", "write package:NAME/FILE"),
        ("hf://datasets/only_an_owner", "write hf://datasets/OWNER/NAME/FILE"),
        (
            "hf://datasets/owner/name/absent.json",
            "could not be fetched from the hub: .* give the path of a copy",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_its_name(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        local_file(name)


def test_a_file_of_the_hub_is_found_by_repository_revision_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the hub's own cache looks like after two revisions were fetched.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for kind, revision, commit in (
        ("datasets", "main", "a" * 40),
        ("datasets", "v1", "b" * 40),
        ("models", "main", "c" * 40),
    ):
        repository = tmp_path / f"{kind}--owner--name"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit / "folder").mkdir(parents=True)
        (repository / "snapshots" / commit / "folder" / "rows.jsonl").write_text(f"{kind} {revision}")
    names = (
        "hf://datasets/owner/name/folder/rows.jsonl",
        "hf://datasets/owner/name@v1/folder/rows.jsonl",
        "hf://owner/name/folder/rows.jsonl",
    )
    assert [local_file(name).read_text() for name in names] == ["datasets main", "datasets v1", "models main"]
