"""The command line: exit codes, messages, and what it imports."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradaug_det import __version__
from gradaug_det.commands import cli, mini_coco
from gradaug_det.errors import DataError

TINY = ["--train", "2", "--val", "1", "--size", "64x80"]
BUILD = ["build-mini-coco", "--out", "coco", *TINY]


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
        (ModuleNotFoundError(name="jinja2"), 2, "error: jinja2 is not installed; `pip install"),
    ],
)
def test_errors_of_a_command(monkeypatch, capsys, error, code, message):
    def fail(args):
        raise error

    monkeypatch.setattr(mini_coco, "run", fail)
    assert cli.main(BUILD) == code
    assert message in capsys.readouterr().err


@pytest.fixture
def deserted():
    """A pipe that nobody reads, as stdout is after ``| head``."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1, encoding="utf-8")


@pytest.mark.parametrize("command", [BUILD, *([name, "--help"] for name in cli.COMMANDS)])
def test_a_reader_that_has_gone_ends_a_command(command, tmp_path, monkeypatch, capfd, deserted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", deserted)
    assert cli.main(command) == 141
    deserted.close()  # what is left goes nowhere
    assert capfd.readouterr() == ("", "")


def test_a_reader_of_errors_and_bars_that_has_gone(monkeypatch, capfd, deserted):
    from tqdm import tqdm

    monkeypatch.setattr(sys, "stderr", deserted)
    with monkeypatch.context() as patch:
        patch.setattr(mini_coco, "run", lambda args: sum(tqdm(range(2))))
        assert cli.main(BUILD) == 141
    assert cli.main([*BUILD[:2], str(Path(__file__)), *TINY]) == 2  # its error is said to nobody
    assert capfd.readouterr() == ("", "")


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capsys):
    def fail(args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(mini_coco, "run", fail)
    assert cli.main(BUILD) == 2
    assert "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_was_closed_from_the_start(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, name, None)
    (tmp_path / "coco").write_text("")
    assert cli.main(["build-mini-coco", "--out", str(tmp_path / "coco"), *TINY]) == 2
    out, error = capfd.readouterr()
    assert out == ""
    assert error.startswith("gradaug-det: error: ") if name == "stdout" else error == ""


def test_a_message_that_the_stream_cannot_encode_ends_nothing(monkeypatch, capfd):
    with Path(os.devnull).open("w", encoding="ascii") as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        monkeypatch.setattr(
            mini_coco, "run", lambda args: logging.getLogger(cli.__name__).info("ネコ") or 0
        )
        assert cli.main(BUILD) == 0
    assert "UnicodeEncodeError" in capfd.readouterr().err


def test_a_full_disk_is_said_once(tmp_path, monkeypatch, capfd):
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.chdir(tmp_path)
        assert cli.main(BUILD) == 2
        assert capfd.readouterr().err.count("No space left on device") == 1


def test_the_program_ends_without_a_word_when_its_reader_has_gone():
    command = f"{sys.executable} -m gradaug_det.commands.cli --help | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (ended.returncode in (0, 141), ended.stderr) == (True, b"")


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(mini_coco, "run", lambda args: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(BUILD)


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
        "    runpy.run_module('gradaug_det.commands.cli', run_name='__main__')\n"
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
