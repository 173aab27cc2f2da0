"""What ``last_checkpoint`` means, whatever became of what it names; and changed settings."""

import pytest
import torch

from gradaug_det.core.resumed import SettingsRecord, last_checkpoint, optimizer_settings
from gradaug_det.errors import GradAugError


@pytest.fixture
def folder(tmp_path):
    for name in ("iter_2", "iter_4"):
        torch.save({"a": torch.zeros(99)}, tmp_path / f"{name}.pth")
    torch.save({}, tmp_path / ".partial.iter_6.pth.abc.pth")  # half-written
    torch.save({}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "iter_4.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("note", "name"),
    [
        ("iter_4.pth", "iter_4.pth"),
        ("iter_2.pth\n", "iter_2.pth"),
        ("/other/machine/work_dirs/x/iter_2.pth", "iter_2.pth"),
        ("D:\\runs\\x\\iter_2.pth", "iter_2.pth"),
        ("work_dirs/x/iter_4.pth", "iter_4.pth"),
        ("legacy.pth", "legacy.pth"),
        ("", "legacy.pth"),  # the newest
        (" \n", "legacy.pth"),
    ],
)
def test_notes_that_can_be_gone_on_with(folder, note, name):
    (folder / "last_checkpoint").write_text(note)
    assert last_checkpoint(folder) == str(folder / name)


@pytest.mark.parametrize(
    ("note", "problem"),
    [
        ("iter_8.pth", r"names iter_8\.pth, which is not there"),
        ("..", r"names \.\., which is not there"),
        ("empty.pth", r"names empty\.pth, which is empty or cut off"),
        ("/elsewhere/cut.pth", r"names /elsewhere/cut\.pth, which is empty or cut off"),
        (b"\xff\x00", "names .*, which is not there"),
    ],
)
def test_notes_that_name_nothing_say_what_there_is(folder, note, problem):
    note = note if isinstance(note, bytes) else note.encode()
    (folder / "last_checkpoint").write_bytes(note)
    rest = r"newest first: legacy\.pth, iter_4\.pth, iter_2\.pth\. Write the name of one into"
    with pytest.raises(GradAugError, match=f"last_checkpoint {problem}; .*{rest}"):
        last_checkpoint(folder)


def test_other_notes(folder, tmp_path_factory):
    assert last_checkpoint(folder) is None
    (folder / "last_checkpoint").write_text("s3://bucket/iter_4.pth")
    assert last_checkpoint(folder) == "s3://bucket/iter_4.pth"
    other = tmp_path_factory.mktemp("other")
    (other / "last_checkpoint").write_text(str(folder / "iter_4.pth"))  # of another folder
    assert last_checkpoint(other) == str(folder / "iter_4.pth")
    (other / "last_checkpoint").write_text("")
    assert last_checkpoint(other) is None
    (other / "last_checkpoint").unlink()
    (other / "last_checkpoint").mkdir()
    with pytest.raises(GradAugError, match=r"last_checkpoint cannot be read .*newest first: none"):
        last_checkpoint(other)


def test_settings_are_compared_by_value():
    record = SettingsRecord("a|d|f", harmless="z", restored="d")
    then = record.select({"a": {"b": 1, "c": (2, 3)}, "d": [{"e": "x"}], "f": print, "g": 1})
    assert then == {"a.b": "1", "a.c": "[2, 3]", "d.0.e": "'x'"}
    now = record.select({"a": {"b": 1.0, "c": [2, 4]}})
    said = record.describe_changes(then, now)
    assert "not used, the checkpoint's hold: d.0.e not set (was 'x')" in said
    assert "another training from here on: a.c [2, 4] (was [2, 3])" in said
    assert SettingsRecord("a|d", harmless="a.c|d", restored="d").describe_changes(then, now) is None


def test_an_optimizers_settings_are_those_before_any_schedule():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "weight_decay": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    before = optimizer_settings(optimizer)
    assert before["optimizer.lr"] == "0.5" and before["optimizer.weight_decay"] == "0, 0.5"
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    schedule.step()
    assert optimizer_settings(optimizer) == before
