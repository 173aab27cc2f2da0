"""The command line: exit codes, messages, and what it imports."""

import logging
import subprocess
import sys

import pytest

from gradaug_det import __version__, cli
from gradaug_det.errors import DataError
from tests.datasets.helpers import write_fake_fashion_mnist

TINY = ["--train", "2", "--val", "1", "--size", "64x80"]


def test_build_twice_says_what_was_done(tmp_path, capsys):
    command = ["build-mini-coco", "--out", str(tmp_path / "coco"), *TINY]
    assert cli.main(command) == 0
    assert "2 train and 1 val images" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert logging.getLogger("gradaug_det").handlers == []


def test_a_user_error_is_one_sentence_and_exit_code_2(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert cli.main(["build-mini-coco", "--out", str(tmp_path), *TINY]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("gradaug-det: error: ")
    assert "was not made by build-mini-coco" in output.err
    assert output.err.count("\n") == 1


def test_force_and_segmentation_reach_the_builder(tmp_path, capsys):
    out = tmp_path / "coco"
    assert cli.main(["build-mini-coco", "--out", str(out), *TINY]) == 0
    changed = ["build-mini-coco", "--out", str(out), *TINY, "--segmentation", "rle"]
    assert cli.main(changed) == 2
    assert "segmentation 'polygon' instead of 'rle'" in capsys.readouterr().err
    assert cli.main([*changed, "--force"]) == 0
    assert '"counts":"' in (out / "annotations" / "instances_train.json").read_text("utf-8")


def test_build_garments(tmp_path, capsys):
    source = write_fake_fashion_mnist(tmp_path / "source")
    command = ["build-garments", "--fashion-mnist", str(source), "--out"]
    assert cli.main([*command, str(tmp_path / "g.npz")]) == 0
    assert "20 train and 10 test garments" in capsys.readouterr().out
    command[2] = str(tmp_path / "nowhere")
    assert cli.main([*command, str(tmp_path / "h.npz")]) == 2
    assert not (tmp_path / "h.npz").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["build-nothing"], "build-mini-coco"),
        (["build-mini-coco"], "--out"),
        (["build-mini-coco", "--out", "x", "--size", "big"], "'big' is not HxW"),
        (["build-mini-coco", "--out", "x", "--segmentation", "bitmap"], "polygon"),
    ],
)
def test_wrong_arguments_exit_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("one\n  two"), 2, "gradaug-det: error: one two\n"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_of_a_command(monkeypatch, capsys, error, code, message):
    from gradaug_det.datasets.commands import garments

    def fail(args):
        raise error

    monkeypatch.setattr(garments, "run", fail)
    assert cli.main(["build-garments", "--fashion-mnist", "x", "--out", "y"]) == code
    assert message in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch):
    from gradaug_det.datasets.commands import garments

    monkeypatch.setattr(garments, "run", lambda args: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["build-garments", "--fashion-mnist", "x", "--out", "y"])


def test_every_command_has_help(capsys):
    for name, command in cli.COMMANDS.items():
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        output = capsys.readouterr().out
        assert "usage: gradaug-det " + name in output
        assert command.help in " ".join(output.split())


def test_module_runs_and_help_needs_no_framework():
    program = (
        "import sys, runpy\n"
        "sys.argv = ['gradaug-det', '--help']\n"
        "try:\n"
        "    runpy.run_module('gradaug_det.cli', run_name='__main__')\n"
        "except SystemExit as error:\n"
        "    assert error.code == 0, error.code\n"
        "heavy = {'torch', 'detectron2', 'mmdet', 'mmengine', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name in cli.COMMANDS:
        assert name in result.stdout


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == f"gradaug-det {__version__}"
