"""The outcome of a target, and what is written of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis

from gradaug_det.utils.files import atomic_path
from tests.faults.fuzzing.reader import INPUT_SECONDS, MEMORY_BYTES
from tests.faults.fuzzing.targets import TARGETS

COMMAND = "python -m tests.faults.fuzzing"
RESULTS, PAGE = "tests/faults/results/fuzzing", "docs/faults/fuzzing.md"

_MOST_KEPT = 100  # findings whose inputs are kept


@dataclass
class Report:
    """The outcome of a target."""

    target: str
    minutes: float
    seed: int
    seconds: float = 0.0
    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    restarts: int = 0
    sentences: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def count(self, answer: dict[str, Any], folder: Path, keep: Path) -> None:
        """Counts a reader's answer to an input, which lies in ``folder``."""
        self.inputs += 1
        self.slowest = max(self.slowest, answer["seconds"])
        if "finding" in answer:
            self.note(answer, folder, keep)
        elif "accepted" in answer:
            self.accepted += 1
        else:
            self.sentences[answer["sentence"]] += 1

    def note(self, answer: dict[str, Any], folder: Path, keep: Path) -> None:
        """Counts a finding, and keeps the input of the first of its kind."""
        for known in self.findings:
            if known["at"] == answer["at"]:
                known["count"] += 1
                return
        number = len(self.findings)
        if number < _MOST_KEPT:
            place = keep / self.target / str(number)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for path in Path(answer.get("input", folder / "input")).glob("*"):
                shutil.copy(path, place / path.name)
            (place / "finding.txt").write_text(answer.get("traceback", answer["finding"]))
        finding = answer["finding"].replace(str(folder), "FOLDER")
        self.findings.append({"finding": finding, "at": answer["at"], "count": 1})
        print(f"{self.target}: finding {number} at {answer['at']}: {finding}", flush=True)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "title": TARGETS[self.target].title,
            "command": f"{COMMAND} {self.target} --minutes {self.minutes:g} --seed {self.seed}",
            "hypothesis": hypothesis.__version__,
            "seconds": round(self.seconds, 1),
            "inputs": self.inputs,
            "accepted": self.accepted,
            "refused": self.inputs - self.accepted - sum(f["count"] for f in self.findings),
            "kinds_of_sentences": len(self.sentences),
            "slowest_seconds": round(self.slowest, 2),
            "restarts": self.restarts,
            "findings": self.findings,
        }


def write(report: Report, out: Path) -> None:
    """Writes the target's JSON file and the page with the table of all targets.

    Args:
        out: the project's folder, or one to write :data:`RESULTS` and :data:`PAGE` into.
    """
    folder = out / RESULTS
    with atomic_path(folder / f"{report.target}.json") as path:
        path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    with atomic_path(out / PAGE) as path:
        path.write_text(table(folder), encoding="utf-8")


def table(folder: Path) -> str:
    """Returns the document of all targets that have a JSON file in the folder."""
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    lines = [
        "# Fuzzing",
        "",
        "What reads files from anywhere was given broken and hostile ones, drawn by Hypothesis. A",
        "finding is something that ran (a program, another unpickler, a file outside of the",
        "folder), an exception that is not the package's own with a sentence that can be",
        f"printed, a dead process, an input that takes more than {INPUT_SECONDS:g} s, or memory",
        f"that grows by more than {MEMORY_BYTES >> 20} MiB. What was found before is fixed, and",
        "kept as tests in tests/faults/test_found_by_fuzzing.py.",
        "",
        "| target | reads | minutes | inputs | accepted | refused with a sentence | kinds of "
        "sentences | slowest input | findings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['target']} | {r['title']} | {r['seconds'] / 60:.1f} | {r['inputs']} | "
        f"{r['accepted']} | {r['refused']} | {r['kinds_of_sentences']} | "
        f"{r['slowest_seconds']:.2f} s | {len(r['findings'])} |"
        for r in found
    ]
    for r in found:
        lines += [f"- {r['target']}: {f['finding']} (x {f['count']})" for f in r["findings"]]
    # Records of earlier runs name the file that the program was in then.
    commands = (r["command"].replace("python tools/fuzz.py", COMMAND) for r in found)
    return "\n".join([*lines, "", "Written by:", "", "```bash", *commands, "```", ""])
