"""The command's arguments: what they mean and how wrong ones are answered."""

import argparse
import json

import pytest

from gradaug_det.benchmark.run import BenchmarkSettings, load_data
from gradaug_det.commands import benchmark as command
from gradaug_det.commands.cli import main
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.frameworks import guess_framework


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_one_config_serves_several_checkpoints():
    files = command.detector_files(parsed("--config", "c.yaml", "--weights", "a.pth", "d/b.pth"))
    assert [(f.config.name, f.weights, f.label) for f in files] == [
        ("c.yaml", "a.pth", "c, a"),
        ("c.yaml", "d/b.pth", "c, b"),
    ]
    files = command.detector_files(
        parsed("--config", "c.yaml", "d.py", "--weights", "a", "b", "--label", "one", "two")
    )
    assert [(f.config.name, f.weights, f.label) for f in files] == [
        ("c.yaml", "a", "one"),
        ("d.py", "b", "two"),
    ]
    assert command.detector_files(parsed("--config", "c.yaml"))[0].weights is None


@pytest.mark.parametrize(
    "arguments, labels",
    [
        ("--config c.yaml --weights a/m.pth b/m.pth", ["c, a/m", "c, b/m"]),
        ("--config c.yaml --weights a/m.pth b/m.pth x.pth", ["c, a/m", "c, b/m", "c, x"]),
        ("--config c.yaml --weights x/a/m.pth y/a/m.pth", ["c, x/a/m", "c, y/a/m"]),
        ("--config c.yaml --weights a/m.pth a/m.pkl", ["c, m.pth", "c, m.pkl"]),
        ("--config c.yaml --weights https://h/a/m https://h/b/m", ["c, a/m", "c, b/m"]),
        ("--config c.yaml --weights gradaug://r50 gradaug://r18", ["c, r50", "c, r18"]),
        ("--config a/c.yaml b/c.yaml", ["a/c", "b/c"]),
        ("--config a/c.yaml b/c.yaml --weights m.pth m.pth", ["a/c, m", "b/c, m"]),
        ("--config c.yaml c.py --weights a/m.pth b/m.pth", ["c.yaml, a/m", "c.py, b/m"]),
        ("--config c --weights a/m.pth b/m.pth --label one two", ["one", "two"]),
        ("--config c --weights a/m.pth a/m.pth --label one two", ["one", "two"]),
    ],
)
def test_labels_are_as_long_as_they_must_be(arguments, labels):
    files = command.detector_files(parsed(*arguments.split()))
    assert [file.label for file in files] == labels


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--config a b --weights c d e", r"--config must be given once, or .* \(3 times\)"),
        ("--config a --weights c d --label x", "--label must be given for each of the 2"),
        ("--config a --weights c d --label x x", "--label must tell the detectors apart"),
        ("--config a --weights x/m.pth ./x/m.pth/", "--weights has './x/m.pth/' twice; leave one"),
        ("--config a.yaml b.py a.yaml", "--config has 'a.yaml' twice; leave one out"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        command.detector_files(parsed(*arguments.split()))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"widths": ()}, "--widths must be one or more, each once"),
        ({"widths": (1.0, 1.0)}, "--widths must be one or more, each once"),
        ({"widths": (1.5,)}, "1.5"),
        ({"limit": 0}, "--limit must be 1 or more, got 0"),
        ({"cost_images": 0}, "--cost-images must be 1 or more"),
        ({"corruptions": ("rain",)}, "'rain' is unknown"),
        ({"epsilons": (-1.0,)}, "--fgsm must be above 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        BenchmarkSettings(**settings)


def test_the_framework_is_seen_in_the_config(tmp_path):
    for name, text, framework in (
        ("a.yaml", "_BASE_: x", "detectron2"),
        ("lazy.py", "from detectron2.config import LazyCall as L", "detectron2"),
        ("mm.py", "_base_ = 'mmdet::x.py'  # not from detectron2", "mmdet"),
    ):
        (tmp_path / name).write_text(text)
        assert guess_framework(tmp_path / name) == framework
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"must be a \.yaml or \.py file"):
        guess_framework(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="does not exist"):
        guess_framework(tmp_path / "d.yaml")


def test_data_that_are_not_there(tmp_path, capsys):
    assert main(["benchmark", "--config", "c.yaml", "--coco", str(tmp_path / "coco")]) == 2
    assert "instances_val2017.json is missing" in capsys.readouterr().err
    assert main(["benchmark", "--config", "c.yaml", "--images", str(tmp_path)]) == 2
    assert "--annotations FILE and --images FOLDER must be given" in capsys.readouterr().err
    (tmp_path / "test.json").write_text(json.dumps({"images": [], "categories": []}))
    with pytest.raises(DataError, match="no 'annotations'"):
        load_data(tmp_path / "test.json", tmp_path, "test")


def test_images_to_match(tmp_path):
    (tmp_path / "a.jpg").touch()
    config = ("--config", "c.yaml")
    found = command._images_to_match(parsed(*config, "--match", "3", "--calibrate", str(tmp_path)))
    assert found == [tmp_path / "a.jpg"] and command._images_to_match(parsed(*config)) == []
    for given, message in (
        (("--match", "3"), "--match is one of two that need each other"),
        (("--calibrate", "x"), "--calibrate is one of two that need each other"),
        (("--match", "0", "--calibrate", str(tmp_path)), "--match must be 1 or more, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            command._images_to_match(parsed(*config, *given))


def test_the_reports_command_names_no_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parsed(
        *("--config", str(tmp_path / "c.yaml"), "--weights", "/elsewhere/model.pth"),
        *("--coco", str(tmp_path / "coco"), "--split", "val", "--widths", "1", "0.9"),
        *("--label", "two words", "--out", "report/x", "--resume"),
    )
    assert command._command(args) == (
        "gradaug-det benchmark --config c.yaml --weights model.pth --label 'two words' "
        "--coco coco --split val --widths 1.0 0.9"
    )
