"""Files are whole or not there."""

import pytest

from gradaug_det.files import atomic_path


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
