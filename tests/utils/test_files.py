"""Files are whole or not there."""

import errno
import os

import pytest

from gradaug_det.errors import GradAugError
from gradaug_det.utils.files import atomic_path, explain_write_errors, remove_partial_files


def test_success_and_failure(tmp_path):
    target = tmp_path / "sub" / "file.json"
    with atomic_path(target) as partial:
        partial.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    assert target.stat().st_mode & 0o777 == 0o644
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "file.json").write_text("whole")
    with atomic_path(tmp_path / "file.json") as partial:
        left = tmp_path / f"{partial.name}2"
        partial.rename(left)  # as if the block had never ended
        partial.write_text("whole again")
    remove_partial_files(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
    remove_partial_files(tmp_path / "not there")


def test_a_write_that_fails_is_a_sentence(tmp_path):
    with pytest.raises(GradAugError, match=r"the note .*x could not be written: No space left on"):
        with explain_write_errors("the note", tmp_path / "x"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(GradAugError, match=r"could not be written: stream failed; .* MiB are free"):
        with explain_write_errors("the note", tmp_path / "x"):
            raise RuntimeError("stream failed\nC++ frames")
    missing = tmp_path / "gone" / "x"
    with pytest.raises(GradAugError, match=r"the folder .*gone is not there"):
        with explain_write_errors("the note", missing):
            missing.write_text("")
