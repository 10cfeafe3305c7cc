"""Files and folders are written whole or not at all, also by several processes and on a full disk."""

import errno
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_heads

from flmm_core.common.output_files import replaced_folder, written_file
from flmm_core.loading.checkpoints import HeadsOrigin, save_heads
from flmm_core.weights import folders

OURS = ("a", "b")


def test_a_file_appears_when_it_is_whole(tmp_path):
    file = tmp_path / "new" / "figures.json"
    for text in ("first", "second"):
        with written_file(file) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".json" and (not file.exists() or file.read_text() == "first")
        assert file.read_text() == text
    with pytest.raises(OSError, match="full"), written_file(file) as temporary:
        temporary.write_text("half")
        raise OSError("full")
    assert file.read_text() == "second" and list(file.parent.iterdir()) == [file]


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with written_file(tmp_path / "link") as temporary:
        temporary.write_text("words")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "words"
    with written_file(Path(os.devnull)) as temporary:
        temporary.write_text("words")
    assert Path(os.devnull).is_char_device()


def test_weights_and_config_are_replaced_together(tmp_path, monkeypatch):
    save_heads(tiny_heads(), tmp_path / "heads", origin=HeadsOrigin(lmm="old"))
    before = {file.name: file.read_bytes() for file in (tmp_path / "heads").iterdir()}

    def full(state, file):
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_heads(tiny_heads(seed=5), tmp_path / "heads", origin=HeadsOrigin(lmm="new"), dtype=torch.float32)
    assert {file.name: file.read_bytes() for file in (tmp_path / "heads").iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["heads"]


def test_other_files_in_the_folder_are_not_lost(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(
        ValueError, match=r"out: expected a folder that is empty or holds an earlier result, got one with letter"
    ):
        save_heads(tiny_heads(), tmp_path / "out")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["out", "letter.txt"]


def test_several_writers_of_one_folder(tmp_path):
    out, contents = tmp_path / "out", [str(number) for number in range(24)]

    def write(content):
        with replaced_folder(out, OURS, "result") as folder:
            for name in OURS:
                (folder / name).write_text(content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert (out / "a").read_text() == (out / "b").read_text() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_what_killed_writers_left_is_deleted_later(tmp_path):
    names = (".out.0123456789abcdef", ".out.fedcba9876543210", ".out.notes")
    for name in names:
        (tmp_path / name).mkdir()
    for name in names[1:]:
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    with replaced_folder(tmp_path / "out", OURS, "result"):
        pass
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", names[0], names[2]}


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC])
def test_an_error_names_the_file_that_was_asked_for(tmp_path, number):
    file = tmp_path / "result.txt"
    with pytest.raises(OSError, match=re.escape(repr(str(file)))), written_file(file) as temporary:
        raise OSError(number, "no", *([temporary] if number == errno.ENOENT else []))
