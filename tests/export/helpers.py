"""Detections of exported detectors, in this process and in one that cannot import gradaug_det."""

import json
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

from gradaug_det.benchmark.changes import Clean
from gradaug_det.benchmark.cost import at_detector_width
from gradaug_det.core.slimming import slim_plan
from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.export.run import export_detector
from gradaug_det.frameworks import load_detector, load_exporter
from gradaug_det.utils.detector_files import DetectorFiles

WIDTH = 0.875
# What a plain environment runs, without gradaug_det in it.
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "gradaug_det":
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
try:
    import gradaug_det
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("gradaug_det was not blocked")
import torch
torch.set_num_threads(1)
"""
FINISH = """
image = torch.load("image.pt", weights_only=True)
files = sys.argv[1:]
found = [detect(*pair, image) for pair in zip(files[::2], files[1::2], strict=True)]
torch.save(found, "found.pt")
"""


def load_program(file):
    """A function of one tensor, from a file of TorchScript or ONNX."""
    if file.suffix == ".pt":
        return torch.jit.load(str(file))
    onnx.checker.check_model(onnx.load(str(file)), full_check=True)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (name,) = (node.name for node in session.get_inputs())
    return lambda image: [torch.as_tensor(v) for v in session.run(None, {name: image.numpy()})]


def run_plainly(program, image, exported, folder):
    """Detects in a process in which gradaug_det cannot be imported.

    Args:
        program: defines ``detect(config, weights, image)``, which returns boxes and scores.
        exported: one or more.

    Returns:
        What it returned for each of them.
    """
    torch.save(image, folder / "image.pt")
    paths = [str(path) for one in exported for path in (one.config, one.weights)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCK + program + FINISH, *paths],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(folder / "found.pt", weights_only=True)


def detections(files, data, image_ids, width=1.0):
    """COCO results of the images, by the framework's own test pipeline."""
    detector = load_detector(files, data, "cpu")
    dataset = detector.dataset(image_ids, Clean())
    with at_detector_width(detector, width):
        return [
            result for index in range(len(image_ids)) for result in detector.detect(dataset[index])
        ]


def some_as_truth(data, results):
    """COCO ground truth of every third result, its box a little moved: AP is neither 0 nor 100.

    Weights that nobody trained find nothing in the data's own.
    """
    truth = json.loads(data.path.read_text())
    truth["annotations"] = [
        {
            **{key: result[key] for key in ("image_id", "category_id", "segmentation")},
            "id": number,
            "bbox": [x, y, 0.77 * w, h],  # an IoU that is no threshold of COCO's
            "area": 0.77 * w * h,
            "iscrowd": 0,
        }
        for number, result in enumerate(results[::3], start=1)
        for x, y, w, h in [result["bbox"]]
    ]
    return truth


def export(files, *args, **kwargs):
    return export_detector(load_exporter(files), *args, **kwargs)


def exported_files(exported):
    return DetectorFiles(exported.config, str(exported.weights), "exported")


def by_place(results):
    return sorted(results, key=lambda r: (r["image_id"], r["category_id"], *r["bbox"]))


def assert_same_results(ours, theirs):
    """The same detections, up to the order in which the floats were added."""
    assert len(ours) == len(theirs) > 20
    for one, other in zip(by_place(ours), by_place(theirs), strict=True):
        assert one["image_id"] == other["image_id"] and one["category_id"] == other["category_id"]
        assert abs(one["score"] - other["score"]) < 1e-4
        assert max(abs(a - b) for a, b in zip(one["bbox"], other["bbox"], strict=True)) < 0.01


def assert_detections_and_ap_of_the_slice(source, exported, data):
    """The exported detector finds what the sub-network does, and not what the full one does."""
    ids = sorted(image["id"] for image in json.loads(data.path.read_text())["images"])
    sliced = detections(source, data, ids, WIDTH)
    narrow = detections(exported_files(exported), data, ids)
    assert_same_results(narrow, sliced)
    with pytest.raises(AssertionError):
        assert_same_results(narrow, detections(source, data, ids))
    truth = some_as_truth(data, sliced)
    one, other = (evaluate_coco(truth, results) for results in (narrow, sliced))
    assert 10 < other["bbox"]["AP"] < 90 and 10 < other["segm"]["AP"] < 90
    for task, metrics in other.items():
        for key, value in metrics.items():
            assert one[task][key] == pytest.approx(value, abs=0.01, nan_ok=True), (task, key)


def randomize_statistics(backbone, seed=0):
    """Statistics of their own in every channel: a wrong slice cannot go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in backbone.state_dict().items():
        if name.endswith("running_mean"):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("running_var"):
            tensor.mul_(0.8 + 0.4 * torch.rand(tensor.shape, generator=generator))
    assert slim_plan(backbone).tensors
