"""A build is whole or absent, is not repeated, and replaces nothing it did not make."""

import logging

import pytest

from gradaug_det.errors import DataError
from gradaug_det.mini_coco import build_mini_coco
from gradaug_det.mini_coco import scenes as mini_coco
from tests.mini_coco.helpers import hashes

TINY = {"train": 2, "val": 1, "size": (64, 64)}


@pytest.fixture
def built(tmp_path):
    return build_mini_coco(tmp_path / "coco", **TINY)


def fail_at(monkeypatch, call, error):
    """Let drawing fail at its ``call``-th image."""
    real, calls = mini_coco.render_scene, []

    def render_scene(*args):
        calls.append(args)
        if len(calls) == call:
            raise error
        return real(*args)

    monkeypatch.setattr(mini_coco, "render_scene", render_scene)
    return calls


def test_the_same_build_is_left_alone_and_said_so(built, monkeypatch, caplog):
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*")}
    calls = fail_at(monkeypatch, 1, AssertionError("drew again"))
    with caplog.at_level(logging.INFO, logger="gradaug_det"):
        assert build_mini_coco(built, **TINY) == built
    assert not calls
    assert "nothing to do" in caplog.text
    assert before == {p: p.stat().st_mtime_ns for p in built.rglob("*")}


def test_another_build_in_the_way_is_named_and_replaced_by_force(built):
    with pytest.raises(DataError, match=r"another build \(seed 0 instead of 1\).*--force"):
        build_mini_coco(built, seed=1, **TINY)
    before = hashes(built)
    build_mini_coco(built, seed=1, force=True, **TINY)
    after = hashes(built)
    assert before["train/000000000001.png"] != after["train/000000000001.png"]
    assert [p.name for p in built.parent.iterdir()] == ["coco"]


def test_force_rebuilds_the_same_build_bit_identically(built):
    before = hashes(built)
    (built / "train" / "000000000001.png").write_bytes(b"spoilt")
    build_mini_coco(built, force=True, **TINY)
    assert hashes(built) == before


@pytest.mark.parametrize("damage", ["edit", "remove", "add"])
def test_changed_files_are_noticed(built, damage):
    path = built / "train" / "000000000002.png"
    if damage == "edit":
        path.write_bytes(path.read_bytes() + b"x")
    elif damage == "remove":
        path.unlink()
    else:
        (built / "train" / "another.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"changed since; rebuild it with --force"):
        build_mini_coco(built, **TINY)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "content", ["a stranger's directory", "an unreadable build.json", "a file"]
)
def test_what_we_did_not_make_is_never_replaced(tmp_path, force, content):
    out = tmp_path / "coco"
    if content == "a file":
        out.write_text("mine")
    else:
        out.mkdir()
        name = "build.json" if "build.json" in content else "thesis.txt"
        (out / name).write_text("mine")
    before = hashes(tmp_path)
    with pytest.raises(DataError, match="was not made by build-mini-coco; choose another"):
        build_mini_coco(out, force=force, **TINY)
    assert hashes(tmp_path) == before


def test_force_spares_a_build_into_which_someone_put_files(built):
    (built / "my_results").mkdir()
    with pytest.raises(DataError, match=r"did not make \(my_results\)"):
        build_mini_coco(built, force=True, **TINY)
    assert (built / "my_results").is_dir()


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "coco").mkdir()
    assert (build_mini_coco(tmp_path / "coco", **TINY) / "build.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch, error):
    calls = fail_at(monkeypatch, 3, error)  # the val image: train is written already
    with pytest.raises(type(error)):
        build_mini_coco(tmp_path / "deep" / "coco", **TINY)
    assert len(calls) == 3
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_interrupted_replacement_leaves_the_old_build(built, monkeypatch):
    before = hashes(built)
    fail_at(monkeypatch, 2, RuntimeError("broken"))
    with pytest.raises(RuntimeError):
        build_mini_coco(built, seed=9, force=True, **TINY)
    assert hashes(built) == before
    assert [p.name for p in built.parent.iterdir()] == ["coco"]


def test_two_builds_at_once_do_not_overwrite_each_other(tmp_path, monkeypatch):
    out = tmp_path / "coco"
    real = mini_coco.draw_contact_sheet

    def meanwhile(*args):
        real(*args)
        out.mkdir()
        (out / "theirs.txt").write_text("x")

    monkeypatch.setattr(mini_coco, "draw_contact_sheet", meanwhile)
    with pytest.raises(DataError, match="appeared while it was being built"):
        build_mini_coco(out, **TINY)
    assert [p.name for p in tmp_path.rglob("*")] == ["coco", "theirs.txt"]
