"""``gradaug-det check-data``: exit codes, what it prints and writes."""

import json

import pytest

from gradaug_det.commands import cli
from gradaug_det.mini_coco import build_mini_coco


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    out = tmp_path_factory.mktemp("command") / "coco"
    return build_mini_coco(out, train=4, val=3, size=(64, 80))


@pytest.fixture
def broken(tmp_path):
    """A train split with a box of no area and a missing image; val is sound."""
    root = build_mini_coco(tmp_path / "broken", train=4, val=3, size=(64, 80))
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    (root / "train" / content["images"][1]["file_name"]).unlink()
    return root


def test_a_sound_set(sound, capsys):
    assert cli.main(["check-data", "--coco", str(sound), "--fail-on", "warning"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert "4 images" in lines[0] and "instances_train.json" in lines[0]
    assert any("3 images" in line and "instances_val.json" in line for line in lines)
    assert lines[-1].startswith("passed: 0 errors, 0 warnings, ")
    assert output.err == ""  # no progress bar where there is no terminal


def test_findings_exit_code_and_json(broken, tmp_path, capsys):
    out = tmp_path / "report" / "found.json"
    command = ["check-data", "--coco", str(broken), "--jobs", "2", "--json", str(out)]
    assert cli.main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.split()[:3] for line in lines if line.startswith(("  error", "  warning"))]
    assert kinds == [["error", "1", "missing-image"], ["warning", "1", "box-zero-area"]]
    assert any("Detectron2: stops when the image's turn comes" in line for line in lines)
    assert any('e.g. image_id 2, file_name "000000000002.png"' in line for line in lines)
    assert lines[-1].startswith("FAILED: 1 errors, 1 warnings, ")

    train, val = json.loads(out.read_text())
    found = {finding["name"]: finding for finding in train["findings"]}
    assert found["box-zero-area"]["count"] == 1
    assert found["box-zero-area"]["severity"] == "warning"
    assert found["box-zero-area"]["examples"][0]["annotation_id"] == 1
    assert {finding["severity"] for finding in val["findings"]} <= {"note"}
    assert [path.name for path in out.parent.iterdir()] == ["found.json"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--split", "val"], 0),
        (["--fail-on", "never"], 0),
        (["--fail-on", "warning"], 1),
        (["--no-decode"], 1),
        (["--split", "val", "--num-classes", "5"], 1),
        (["--split", "val", "--num-classes", "20"], 0),
        (["--split", "val", "--num-classes", "20", "--fail-on", "warning"], 1),
    ],
)
def test_exit_codes(broken, arguments, code):
    assert cli.main(["check-data", "--coco", str(broken), *arguments]) == code


def test_annotations_with_and_without_images(broken, capsys):
    file = str(broken / "annotations" / "instances_train.json")
    assert cli.main(["check-data", "--annotations", file]) == 0  # the missing image is not seen
    assert "box-zero-area" in capsys.readouterr().out
    images = str(broken / "train")
    assert cli.main(["check-data", "--annotations", file, "--images", images]) == 1


def test_several_annotation_files(broken, capsys):
    """Their classes are compared; images are of all or of each."""
    files = [broken / "annotations" / f"instances_{split}.json" for split in ("val", "train")]
    command = ["check-data", "--annotations", *map(str, files)]
    assert cli.main(command) == 0
    assert "4 images" in capsys.readouterr().out
    assert cli.main([*command, "--images", str(broken / "val"), str(broken / "train")]) == 1
    assert "1  missing-image" in capsys.readouterr().out
    assert cli.main([*command, "--images", str(broken / "val")]) == 1  # train's are not there
    content = json.loads(files[1].read_text())
    content["categories"][1]["name"], content["categories"][2]["name"] = "Coat", "Hat"
    files[1].write_text(json.dumps(content))
    capsys.readouterr()
    for arguments in (command, ["check-data", "--coco", str(broken)]):
        assert cli.main([*arguments, "--fail-on", "error"]) == 1
        output = capsys.readouterr().out
        assert "1  classes-differ" in output and "class 1 is '" in output
        assert output.count("instances_val.json") == output.count("instances_train.json") == 2


def test_class_folders(sound, tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(next((sound / "val").iterdir()).read_bytes())
    assert cli.main(["check-data", "--imagefolder", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "class-empty" in output and "dog" in output and "Detectron2" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coco", "{sound}", "--images", "x"], "--images goes with --annotations only"),
        (
            ["--annotations", "a", "b", "--images", "c", "d", "e"],
            "--images has 3 folders for 2 annotation files; give one for all, or one for each",
        ),
        (["--imagefolder", "{sound}", "--split", "x"], "--split goes with --coco only"),
        (["--imagefolder", "{sound}", "--boxes-only"], "--boxes-only does not go with"),
        (["--coco", "{sound}/train"], "holds none of annotations/instances_SPLIT.json"),
        (["--coco", "{sound}", "--split", "test"], "instances_test.json is missing"),
        (["--coco", "{sound}", "--jobs", "0"], "jobs 0 is out of range"),
        (["--annotations", "{sound}/build.json"], "'images' is missing"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(sound, capsys, arguments, message):
    arguments = [argument.format(sound=sound) for argument in arguments]
    assert cli.main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
