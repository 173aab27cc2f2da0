"""What both frameworks share: widths, who reads the backbone, statistics, images, the command."""

import copy
import json
import sys
from fractions import Fraction

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn
from torchvision.models import resnet18, resnet50, resnext50_32x4d

from gradaug_det.benchmark.cost import at_detector_width, match_statistics
from gradaug_det.commands.cli import main
from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.errors import ConfigError, DataError, UnslimmableError
from gradaug_det.export.calibration import (
    find_images,
    measure_moments,
    recalibrate,
    split_evenly,
    statistics_of,
)
from gradaug_det.export.programs import FORMATS, Traceable, make_program
from gradaug_det.export.slicing import largest_difference, layer_outputs, narrow_state
from gradaug_det.export.widths import expressible_widths, scale_channels, share_of_channels
from gradaug_det.frameworks import load_detector
from gradaug_det.utils.detector_files import DetectorFiles
from tests.export.conftest import CONFIGS
from tests.export.helpers import WIDTH, export, exported_files


@pytest.mark.parametrize("model, units", [(resnet18, 64), (resnet50, 64), (resnext50_32x4d, 32)])
def test_widths_at_which_all_layers_keep_the_same_share(model, units):
    plan = slim_plan(model(num_classes=2))
    widths = expressible_widths(plan)
    assert widths == [Fraction(k, units) for k in range(1, units + 1)]
    assert share_of_channels(plan, 0.875) == Fraction(7, 8)
    with pytest.raises(ConfigError, match=r"--width 0.9 cannot be exported: .* 0.90625$"):
        share_of_channels(plan, 0.9)


def test_widths_of_a_divisor():
    plan = slim_plan(resnet18(num_classes=2))
    assert expressible_widths(plan, 32) == [Fraction(1, 2), 1]
    with pytest.raises(ConfigError, match=r"--width 0.875 .* 128 channels keep 128 .* 0.5 or 1$"):
        share_of_channels(plan, 0.875, 32)


def test_a_share_that_is_no_whole_number():
    assert scale_channels("base_channels", 16, Fraction(7, 8)) == 14
    with pytest.raises(ConfigError, match=r"groups is 4, of which 0.875 is 3.5, no whole number"):
        scale_channels("groups", 4, Fraction(7, 8))


class Tiny(nn.Module):
    """A backbone of one convolution, and what reads it."""

    def __init__(self, read, channels=8, groups=1):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
        self.neck = nn.Conv2d(channels, 4, 1, groups=groups)
        self.read = read

    def forward(self):
        return self.read(self, self.backbone(torch.ones(1, 3, 8, 8)))


@torch.no_grad()
def narrowed(read, groups=1):
    """The network, the narrow one with its weights, and how much it differs from the slice."""
    model, narrow = (Tiny(read, channels, groups).eval() for channels in (8, 4))
    narrow.load_state_dict(narrow_state(model, model.backbone, narrow, 0.5))
    with at_width(model.backbone, 0.5, norm="frozen"):
        sliced = layer_outputs(model, model)
    return model, narrow, largest_difference(lambda: layer_outputs(narrow, narrow), sliced)


def test_what_reads_the_backbone_is_cut():
    model, narrow, difference = narrowed(lambda model, x: model.neck(x))
    assert difference < 1e-5
    assert torch.equal(narrow.neck.weight, model.neck.weight[:, :4])


@pytest.mark.parametrize(
    "read, groups, message",
    [
        (lambda model, x: model.neck(x - x.mean(1, True)), 1, "differs at 'neck' by up to"),
        (lambda model, x: model.neck(x), 2, "'neck.weight' is 4x4x1x1 .* and 4x2x1x1"),
        (lambda model, x: x.view(1, 8, 36), 1, r"stops with an error \(shape"),
    ],
)
def test_other_readers_are_refused(read, groups, message):
    with pytest.raises(UnslimmableError, match=message):
        narrowed(read, groups)


def test_a_narrow_network_of_other_layers_is_refused():
    model, narrow = Tiny(None), Tiny(None, 5)
    with pytest.raises(UnslimmableError, match=r"'backbone.0.weight' is 4x3x3x3 .* and 5x3x3x3"):
        narrow_state(model, model.backbone, narrow, 0.5)
    narrow = Tiny(None, 4)
    narrow.neck = nn.Conv2d(4, 2, 1)
    with pytest.raises(UnslimmableError, match=r"'neck.weight' is 4x8x1x1 .* and 2x4x1x1"):
        narrow_state(model, model.backbone, narrow, 0.5)
    model.head, narrow.head = nn.Conv2d(8, 2, 1), nn.Conv2d(4, 2, 1)  # past the neck
    narrow.neck = nn.Conv2d(4, 4, 1)
    with pytest.raises(UnslimmableError, match=r"'head.weight' is 2x8x1x1 .* and 2x4x1x1"):
        narrow_state(model, model.backbone, narrow, 0.5)


def test_maps_that_differ_are_an_error():
    found = torch.ones(1, 2, 3, 3)
    assert (
        largest_difference(
            lambda: {"a": found + 1e-6, "b": found[:0]}, {"a": found, "b": found[:0]}
        )
        < 1e-5
    )
    for wrong, message in (
        (1.1 * found, "differs at 'a' by up to 1.0e-01"),
        (found * float("nan"), "differs at 'a' by up to nan"),
        (found[:, :1], "finds 1x1x3x3 at 'a' where the sub-network finds 1x2x3x3; nothing was"),
        (None, "finds missing at 'a'"),
    ):
        with pytest.raises(UnslimmableError, match=message):
            largest_difference(lambda wrong=wrong: {"a": wrong}, {"a": found})
    with pytest.raises(UnslimmableError, match="detector finds numbers that are not finite at 'a'"):
        largest_difference(lambda: {"a": found}, {"a": found / 0})


def test_one_batch_gives_fvcores_statistics():
    """fvcore's PreciseBN is another implementation; of one batch it says the same."""
    ours, theirs = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3),
                                  nn.BatchNorm2d(4)) for _ in range(2))  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 16, 16) * 3 + 1
    recalibrate(ours.eval(), [images])
    update_bn_stats(theirs.train(), [images], 1)
    for layer in (1, 3):
        torch.testing.assert_close(ours[layer].running_mean, theirs[layer].running_mean)
        pixels = 4 * (14 if layer == 1 else 12) ** 2  # theirs is the biased variance
        torch.testing.assert_close(
            ours[layer].running_var, theirs[layer].running_var * pixels / (pixels - 1)
        )
    assert not ours[1].training and ours[1].momentum == 0.1 and type(ours[1]) is nn.BatchNorm2d
    with pytest.raises(ConfigError, match="--calibrate needs norms with running statistics"):
        recalibrate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)), [images])
    with pytest.raises(DataError, match=r"images of \(1, 3, 5, 5\) are too few or too small"):
        recalibrate(ours, [images[:1, :, :5, :5]])


def test_a_narrow_network_gets_the_full_ones_moments():
    """Also where the full network's frozen statistics are not those of what its layers see."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
                            nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8)).eval()  # fmt: skip
    with torch.no_grad():
        network[1].weight.uniform_(-1, 2)
        network[4].running_mean.uniform_(-1, 1)
        network[4].running_var.uniform_(0.1, 3)
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(8, 3, 32, 32) * 3 + 1
    moments = measure_moments(network, [images])

    def outputs():
        with torch.no_grad():
            for last in (2, 5):
                x = network[:last](images)[:, :4].transpose(0, 1).flatten(1)
                yield torch.stack([x.mean(1), x.std(1)])

    full = list(outputs())
    with at_width(network, 0.5, norm="frozen"):
        cut = list(outputs())
        recalibrate(network, [images], moments)
        assert len(network[1].running_mean) == 8
        torch.testing.assert_close(list(outputs()), full, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(cut[1], full[1], rtol=0.1)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("framework", CONFIGS)
def test_a_benchmark_matches_as_an_export_does(framework, checkpoints, coco, data, tmp_path):
    source = DetectorFiles(CONFIGS[framework], str(checkpoints[framework]), "d")
    images = find_images(coco / "val", 3)
    exported = export(source, WIDTH, tmp_path, images=images, match=True)
    assert exported.record["calibration"]["matched"]
    detector = load_detector(source, data, "cpu")
    match_statistics(detector, [1.0, 0.95, WIDTH], images)  # trained down to 0.9
    assert detector.statistics.keys() == {WIDTH}
    narrow = load_detector(exported_files(exported), data, "cpu").backbone
    before = statistics_of(detector.backbone)
    with at_detector_width(detector, WIDTH):
        used = statistics_of(detector.backbone)
        torch.testing.assert_close(used, statistics_of(narrow), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(statistics_of(detector.backbone), before, rtol=0, atol=0)
    cut = [(m[: len(s)], v[: len(s)]) for (m, v), (s, _) in zip(before, used, strict=True)]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(used, cut, rtol=1e-2, atol=1e-2)


def test_batches_are_of_about_the_same_size():
    assert [len(batch) for batch in split_evenly(range(17), 8)] == [5, 6, 6]
    assert [i for batch in split_evenly(range(17), 8) for i in batch] == list(range(17))


def test_images_of_a_folder_and_of_a_json(coco, tmp_path, caplog):
    found = find_images(coco / "annotations/instances_val.json", 2)
    assert found == sorted((coco / "val").iterdir())[:2] == find_images(coco / "val", 2)
    assert len(find_images(coco / "val", 1000)) == 4
    assert "--images is 1000, but val has 4" in caplog.text
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}]}))
    (tmp_path / "other.json").write_text("[]")
    for source, count, message in (
        ("empty", 1, "there is no image in"),
        ("nowhere", 1, "does not exist"),
        ("lost.json", 1, "'a.jpg', is neither in"),
        ("other.json", 1, "is not in COCO's format"),
        ("empty", 0, "--images must be 1 or more, got 0"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            find_images(tmp_path / source, count)


def test_the_command(checkpoints, coco, tmp_path, capsys):
    out = tmp_path / "narrow"
    arguments = ["export", "--config", str(CONFIGS["detectron2"]), "--out", str(out)]
    arguments += ["--weights", str(checkpoints["detectron2"]), "--width"]
    assert main([*arguments, "0.875", "--calibrate", str(coco / "val"), "--images", "2"]) == 0
    assert "channels [56, 112, 224, 448]" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["config.py", "export.json", "model.pth"]
    record = json.loads((out / "export.json").read_text())
    assert record["width"] == 0.875 and record["calibration"] == {
        "source": "val",
        "images": 2,
        "matched": False,
    }
    assert len(record["source"]["weights_sha256"]) == 64
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    for wrong, message in (
        (["0.875", "--calibrate", str(tmp_path / "broken")], "a.png' cannot be read: Unidentified"),
        (["0.875", "--images", "3"], "--images says how many of --calibrate are used"),
        (["0.875", "--match", "3"], "--match says how many of --calibrate are used"),
        (["0.9"], "nearest widths that it can express are 0.890625 or 0.90625"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err


class ConstantSize(nn.Module):
    """Its trace multiplies by the example's height, whatever the image's is."""

    def forward(self, image):
        return (image.mean() * float(image.shape[1]),)


class NoTensor(nn.Module):
    def forward(self, image):
        return (str(image),)


def traceable(module):
    return Traceable(
        name="toy",
        module=module.eval(),
        example=torch.rand(3, 4, 4),
        other=torch.rand(3, 6, 5),
        sizes={1: "height", 2: "width"},
        outputs=("mean",),
        note="a toy",
    )


@pytest.mark.parametrize("program", FORMATS)
def test_programs_that_cannot_be(program):
    for module, message in (
        (ConstantSize(), f"--{program} .* finds something else on an image of another size"),
        (NoTensor(), f"--{program} is not possible for this detector: tracing fails"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_program(program, lambda m=module: traceable(m))


def test_a_program_without_its_format_or_runtime(monkeypatch, tmp_path, capsys):
    with pytest.raises(ConfigError, match="'torchscript', 'onnx'], got 'coreml'"):
        make_program("coreml", lambda: traceable(ConstantSize()))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"--onnx needs onnxruntime: pip install"):
        make_program("onnx", lambda: traceable(ConstantSize()))
    # Before the detector, of which there is none here, is looked for.
    arguments = ["export", "--config", str(tmp_path / "no.yaml"), "--weights", "no.pth"]
    assert main([*arguments, "--width", "0.9", "--out", str(tmp_path), "--onnx"]) == 2
    assert "--onnx needs onnxruntime" in capsys.readouterr().err
