"""Reading the frameworks' scalars, also when a crash has cut the file."""

import json
import logging
import math

import pytest

from gradaug_det.errors import DataError
from studies.report.curves import read_detectron2_metrics, read_mmengine_metrics


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_scalars_become_curves(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_text(
        lines(
            {
                "iteration": 19,
                "total_loss": 2.5,
                "gradaug/sub0/loss": 1.5,
                "gradaug/sub0/width": 0.9,
            },
            {"iteration": 39, "total_loss": 2, "note": "text", "flag": True},
            {"iteration": 39, "bbox/AP": 12.5},
        )
    )
    assert read_detectron2_metrics(path) == {
        "total_loss": [(19, 2.5), (39, 2.0)],
        "gradaug/sub0/loss": [(19, 1.5)],
        "gradaug/sub0/width": [(19, 0.9)],
        "bbox/AP": [(39, 12.5)],
    }
    assert not caplog.records


def test_a_cut_line_is_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_text(lines({"iteration": 19, "total_loss": 2.5}) + '{"iteration": 39, "total_lo')
    with caplog.at_level(logging.WARNING):
        assert read_detectron2_metrics(path) == {"total_loss": [(19, 2.5)]}
    assert "skipped 1 line" in caplog.text


def test_a_resumed_training_replaces_what_it_repeats(tmp_path):
    path = tmp_path / "metrics.json"
    first = lines(*({"iteration": i, "total_loss": 5.0} for i in (19, 39, 59)))
    second = lines(*({"iteration": i, "total_loss": 1.0} for i in (39, 59, 79)))
    path.write_text(first + second)
    expected = [(19, 5.0), (39, 1.0), (59, 1.0), (79, 1.0)]
    assert read_detectron2_metrics(path)["total_loss"] == expected


def test_a_diverged_loss_stays_visible(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19, "total_loss": NaN}\n')
    ((iteration, value),) = read_detectron2_metrics(path)["total_loss"]
    assert iteration == 19 and math.isnan(value)


def test_no_metrics_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_detectron2_metrics(tmp_path / "metrics.json")
    (tmp_path / "log.txt").write_text("[11/24 02:00:00] d2.utils.events: eta: 0:10:00\n[1, 2]\n")
    with pytest.raises(DataError, match="no line with a JSON object"):
        read_detectron2_metrics(tmp_path / "log.txt")


def scalars(work_dir, start: str):
    path = work_dir / start / "vis_data" / "scalars.json"
    path.parent.mkdir(parents=True)
    return path


def test_mmengine_scalars_have_the_shape_of_detectron2s(tmp_path):
    training = {"lr": 0.01, "data_time": 0.02, "loss": 2.5, "gradaug/sub0/loss": 1.5, "time": 0.6}
    validation = {"coco/bbox_mAP": 0.125, "coco/segm_mAP_50": 0.5, "coco/bbox_mAP_l": -1.0}
    scalars(tmp_path, "20260101_000000").write_text(
        lines({**training, "iter": 20, "memory": 0, "step": 20}, {**validation, "step": 20})
    )
    curves = read_mmengine_metrics(tmp_path)
    ((iteration, missing),) = curves.pop("bbox/APl")
    assert iteration == 19 and math.isnan(missing)
    assert curves == {
        "lr": [(19, 0.01)],
        "data_time": [(19, 0.02)],
        "total_loss": [(19, 2.5)],
        "gradaug/sub0/loss": [(19, 1.5)],
        "time": [(19, 0.6)],
        "memory": [(19, 0.0)],
        "bbox/AP": [(19, 12.5)],
        "segm/AP50": [(19, 50.0)],
    }


def test_a_resumed_mmengine_training_has_several_files(tmp_path, caplog):
    first, empty, last = (scalars(tmp_path, f"20260101_00000{i}") for i in range(3))
    first.write_text(lines(*({"loss": 5.0, "step": i} for i in (20, 40, 60))) + '{"loss": 5.0, "st')
    empty.write_text("")  # killed before its first line
    last.write_text(lines(*({"loss": 1.0, "step": i} for i in (60, 80))))
    with caplog.at_level(logging.WARNING):
        curves = read_mmengine_metrics(tmp_path)
    assert curves == {"total_loss": [(19, 5.0), (39, 5.0), (59, 1.0), (79, 1.0)]}
    assert "20260101_000000/vis_data/scalars.json: skipped 1 line" in caplog.text


def test_no_mmengine_scalars_is_an_error(tmp_path):
    with pytest.raises(DataError, match="LocalVisBackend writes it"):
        read_mmengine_metrics(tmp_path)
    scalars(tmp_path, "20260101_000000").write_text("")
    with pytest.raises(DataError, match="no line with a JSON object and its 'step'"):
        read_mmengine_metrics(tmp_path)
