"""The committed report is what its runs say: differences are recomputed from its numbers."""

import json
from pathlib import Path

from gradaug_det.reports.rendering import with_sign
from studies.frameworks.study import METHODS, framework_agreements
from studies.report.records import RunRecord
from studies.runner.frameworks import FRAMEWORKS

FOLDER = Path(__file__).parents[2] / "studies" / "frameworks" / "results"


def test_differences_are_those_of_the_runs():
    content = json.loads((FOLDER / "report.json").read_text())
    runs = [
        RunRecord(
            name=run["name"],
            label=run["label"],
            config=run["config"],
            iterations=run["iterations"],
            metrics=run["metrics"],
            method=run["method"],
            seed=run["seed"],
        )
        for run in content["runs"]
    ]
    assert {run.method for run in runs} == {f"{f}-{m}" for f in FRAMEWORKS for m in METHODS}
    assert all(sum(r.method == run.method for r in runs) >= 3 for run in runs)
    agreements = framework_agreements(runs)
    assert len(agreements) == 8
    text = (FOLDER / "report.md").read_text()
    for what, found in agreements.items():
        assert (
            f"{what}: {with_sign(found.difference)} points; pooled standard deviation over seeds "
            f"{found.pooled:.2f}; Welch's 95 % interval {with_sign(found.low)} to "
            f"{with_sign(found.high)}"
        ) in text
    assert len({(run.iterations, run.config.split("/")[0]) for run in runs}) == 1
