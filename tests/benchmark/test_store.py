"""Detections on disk survive what interrupts a run."""

import logging

import pytest

from gradaug_det.benchmark.store import DetectionStore


def result(image_id, score):
    return {"image_id": image_id, "category_id": 1, "bbox": [0.5, 1, 2, 3], "score": score}


def test_what_was_written_is_read(tmp_path):
    store = DetectionStore(tmp_path / "a" / "b")
    assert store.read() == {}
    store.write([(3, [result(3, 0.125)]), (1, [])])
    written = {3: [result(3, 0.125)], 1: []}
    assert store.read() == written
    DetectionStore(tmp_path / "a" / "b", rank=1).write([(7, [result(7, 1 / 3)])])
    assert store.read() == written | {7: [result(7, 1 / 3)]}  # exact, of all processes


def test_a_cut_off_line_is_not_there_and_spoils_nothing(tmp_path, caplog):
    store = DetectionStore(tmp_path)
    store.write([(1, []), (2, [result(2, 0.5)])])
    text = store.file.read_text()
    store.file.write_text(text[:-20])
    with caplog.at_level(logging.WARNING):
        assert store.read() == {1: []}
    assert "incomplete line" in caplog.text
    store.write([(2, [result(2, 0.75)]), (3, [])])
    assert store.read() == {1: [], 2: [result(2, 0.75)], 3: []}


def test_each_image_is_on_disk_before_the_next_is_detected(tmp_path):
    store = DetectionStore(tmp_path)

    def images():
        yield 1, []
        assert store.read() == {1: []}
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.write(images())
    assert store.read() == {1: []}
