"""Code blocks of the project's documents, and how they are run.

The blocks of a document run in order, in one empty folder that has ``configs`` and ``tools`` in it:
a page must work for a reader from top to bottom.

- ``bash``, ``python``: run; they must end without an error.
- These or ``yaml`` with ``title="NAME"``: saved as the file ``NAME``. Other ``yaml`` is parsed.
- ``text`` with ``title="output"``: its lines are looked for in what the last block printed; ``...``
  stands for anything.
- Any of these after a line ``<!-- not run: REASON -->``: parsed, and nothing else. The reason says
  what a test has not got: GPUs, COCO, hours, a network. How many they are is counted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "docs/reference/*.md") for path in ROOT.glob(pattern)
)
CODE = ("bash", "python", "yaml")
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        where: document and line.
        language: the word after the fence.
        title: the file that it is saved as; ``output`` for what the block before it prints.
        reason: why it is not run here; None if it is.
    """

    where: str
    language: str
    title: str | None
    text: str
    reason: str | None

    @property
    def runs(self) -> bool:
        """True if a test executes it or holds it against an output."""
        return self.reason is None


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document that name a language, in order."""
    text = document.read_text("utf-8")
    name = document.relative_to(ROOT).as_posix()
    return [
        Block(
            f"{name}:{text.count(chr(10), 0, match.start()) + 1}",
            match["language"],
            match["title"],
            match["text"],
            match["reason"],
        )
        for match in _BLOCK.finditer(text)
    ]


def parse(block: Block) -> None:
    """Raises if the block is not of its language."""
    if block.language == "python":
        compile(block.text, block.where, "exec")
    elif block.language == "bash":
        command = ["bash", "-n", "-c", block.text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.where}: {done.stderr}"
    elif block.language == "yaml":
        import yaml

        yaml.safe_load(block.text)


def run_all(document: Path, folder: Path) -> None:
    """Runs a document's blocks one after the other in a folder, as a reader would.

    The folder has the project's ``configs`` and ``tools`` in it.
    """
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    output = ""
    for number, block in enumerate(blocks(document)):
        if not block.runs:
            continue
        if block.title == "output":
            assert_printed(block, output)
        elif block.title is not None:
            (folder / block.title).write_text(block.text, "utf-8")
        elif block.language == "bash":
            output = run(["bash", "-euo", "pipefail", "-c", block.text], block, folder)
        elif block.language == "python":
            script = folder / f"block_{number}.py"
            script.write_text(block.text, "utf-8")
            output = run([sys.executable, script.name], block, folder)


def run(command: list[str], block: Block, folder: Path) -> str:
    """Returns what the command prints; fails with it if the command does."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "GRADAUG_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    tail = "\n".join(done.stdout.splitlines()[-40:])
    assert done.returncode == 0, f"{block.where} ended with {done.returncode}:\n{tail}"
    return done.stdout


def assert_printed(block: Block, output: str) -> None:
    """Each line of the block is in the output, in this order; ``...`` stands for anything."""
    rest = output
    for line in filter(str.strip, block.text.splitlines()):
        pattern = r"[^\n]*?".join(re.escape(part.strip(" ")) for part in line.split("..."))
        match = re.search(pattern, rest)
        assert match, f"{block.where}: not printed: {line!r} in\n{output[-3000:]}"
        rest = rest[match.end() :]
