"""The readable side of a zoo: the table of its backbones, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2

from gradaug_det.zoo.index import Entry
from gradaug_det.zoo.info import METRICS

# Licences of which the Hugging Face Hub has a page; it calls all others "other".
_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0")


def model_card(entries: Mapping[str, Entry]) -> str:
    """A zoo's README.md: the card in Hugging Face's form, the same for the same entries."""
    # Licences of files that are elsewhere are not those of the folder.
    licences = {e.info.licence.lower() for e in entries.values() if e.gdrive_id is None}
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"trim_blocks": True, "undefined": jinja2.StrictUndefined}
    template = jinja2.Environment(loader=folder, **options).get_template("card.md.j2")
    return (
        template.render(
            entries=list(entries.values()),
            results=[entry for entry in entries.values() if entry.info.metrics],
            licence=licences.pop() if len(licences) == 1 and licences <= set(_LICENCES) else None,
            names=METRICS,
            metrics=_metrics,
            dataset=_dataset,
            table=backbone_table(entries),
        ).rstrip()
        + "\n"
    )


def backbone_table(entries: Mapping[str, Entry]) -> str:
    """The backbones as a table in Markdown; ``*`` marks metrics that are a claim."""
    rows = [["name", "architecture", "MB", *METRICS.values(), "sha256", "licence"]]
    rows.append([":--", ":--", "--:", *["--:"] * len(METRICS), ":--", ":--"])
    for name, entry in sorted(entries.items()):
        mark = "" if entry.measured else "*"
        metrics = entry.info.metrics
        cells = [
            f"`{name}`",
            entry.info.architecture,
            f"{entry.size / 1e6:.1f}" if entry.size else "",
            *(f"{metrics[key]:.2f}{mark}" if key in metrics else "" for key in METRICS),
            f"`{entry.sha256[:12]}`" if entry.sha256 else "none published",
            entry.info.licence,
        ]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _metrics(entry: Entry) -> list[tuple[str, float]]:
    metrics = entry.info.metrics
    order = [*METRICS, *sorted(metrics.keys() - METRICS.keys())]
    return [(key, metrics[key]) for key in order if key in metrics]


def _dataset(entry: Entry) -> str:
    """The images that it was trained on, as far as its recipe tells."""
    data = entry.info.recipe.get("data")
    if isinstance(data, Mapping):
        data = data.get("kind")
    return data if isinstance(data, str) and data.isprintable() else "images that are not named"
