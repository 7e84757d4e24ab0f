"""A file is the old one or the new one, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.files import write_whole


def test_the_new_content_takes_the_place_of_the_old_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    write_whole(file, b"old, and longer")
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    write_whole(file, b"old")
    (tmp_path / "model.bin.partial").mkdir()  # nothing can be opened under this name
    with pytest.raises(IsADirectoryError):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
