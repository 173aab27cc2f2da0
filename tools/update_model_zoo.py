#!/usr/bin/env python
"""Writes the rows of MODEL_ZOO.md's tables: the zoo's index, recipes and stored measurements.

The package's index is written anew, too: it has the entries of zoo/index.json.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.card import backbone_table
from gradaug_det.zoo.index import INDEX_NAME, read_index, write_index
from gradaug_det.zoo.sources import BUILT_IN, CHECKOUT

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "MODEL_ZOO.md"
TABLE3 = {  # of its cells those with a shipped config and backbone
    "baseline-plain-1x": "plain",
    "gradaug-plain-1x": "plain",
    "gradaug-labels-1x": "GradAug, labels",
    "gradaug-both-1x": "GradAug, both",
    "gradaug-plain-as-labels": "plain, 2.7x",
    "gradaug-rescaled-as-labels": "plain, rescaled images, 2.7x",
}
THEIRS = {  # box AP | mask AP | seconds a step | GB; the document names the sources
    "cascade_mask_rcnn_R_50": "42.1 | 36.4 | 0.317 | 4.0",
    "faster_rcnn_R_50": "37.9 | | 0.210 | 3.0",
    "mask_rcnn_R_50": "38.6 | 35.2 | 0.261 | 3.4",
    "retinanet_R_50": "37.4 | | 0.205 | 4.1",
    "mask-rcnn_r50": "38.2 | 34.7 | | 4.4",
    "retinanet_r50": "36.5 | | | 3.8",
}
VARIANTS = {"plain": "plain", "gradaug": "labels-3", "anywidth": "alternating"}
IMAGES = 1_281_167  # of ImageNet's training split


def find_steps(task: str, variant: str) -> dict:
    """The stored measurement of a variant's training steps, of that on the largest images;
    empty without one."""
    sections = json.loads((ROOT / "benchmarks/results/training.json").read_text())["sections"]
    usual = {"small": False, "channels_last": False, "options": {}}
    found = [
        section
        for section in sections
        if section["task"] == task
        and variant in section["measured"]
        and usual.items() <= section["workload"].items()
    ]
    return max(found, key=lambda section: section["workload"]["size"], default={})


def read_mini_trainings() -> Iterator[tuple[str, str, str, int, dict]]:
    """Title, log, command, steps and metrics of each stored fine-tuning on mini-COCO."""
    for cell, title in TABLE3.items():
        log = f"studies/table3_mini/results/{cell}-seed1.json"
        for seed in (1, 2, 3):
            run = json.loads((ROOT / log.replace("seed1", f"seed{seed}")).read_text())
            yield title, log, run["command"], run["iterations"], run["metrics"]
    log = "studies/frameworks/results/report.json"
    report = json.loads((ROOT / log).read_text())
    for run, command in zip(report["runs"], report["commands"], strict=True):
        title = "GradAug, labels" if run["label"].startswith("GradAug") else "plain"
        yield title, log, command, run["iterations"], run["metrics"]


def demo_rows() -> Iterator[str]:
    for folder, log in (("detectron2", "report.json"), ("mmdet", "mmdet/report.json")):
        report = json.loads((ROOT / "studies/demo/results" / log).read_text())
        for detector in report["detectors"]:
            config = f"configs/{folder}/{detector['config']}"
            aps = [
                " / ".join(f"{width['metrics'][task]['AP']:.1f}" for width in detector["widths"])
                for task in ("bbox", "segm")
            ]
            yield f"[{detector['config']}]({config}) | {detector['label']} | {' | '.join(aps)}"


def mini_rows() -> Iterator[str]:
    seeds: dict[tuple, list[dict]] = {}
    for title, log, command, steps, metrics in read_mini_trainings():
        config = re.search(r"configs/(\S+)", command)[1]
        backbone = re.search(r"gradaug://([\w-]+)", command)[1]
        seeds.setdefault((config, title, backbone, steps, log), []).append(metrics)
    readme = (ROOT / "studies/table3_mini/README.md").read_text()
    ratios = {kind: ratio for ratio, kind in re.findall(r"([\d.]+) \(`(\w+)`\)", readme)}
    for (config, title, backbone, steps, log), found in seeds.items():
        cells = []
        for task in ("bbox", "segm"):
            aps = [metrics[task]["AP"] for metrics in found]
            cells.append(f"{fmean(aps):.1f}" + (f" ± {stdev(aps):.1f}" if len(aps) > 1 else ""))
        ratio = ratios[title.split()[1]] if "GradAug" in title else "1"
        if "mmdet" in config or "rescaled" in title:
            ratio = ""  # not measured
        yield (
            f"[{Path(config).name}](configs/{config}) | {title} | `{backbone}` | {steps} | "
            f"{len(found)} | {' | '.join(cells)} | {ratio} | [{log.split('/')[1]}]({log})"
        )


def coco_rows() -> Iterator[str]:
    for file in sorted((ROOT / "configs").glob("[dm]*/*50*")):
        config = file.relative_to(ROOT / "configs").as_posix()
        task, name = config.split("/")
        theirs = next(numbers for start, numbers in THEIRS.items() if name.startswith(start))
        cost = "| "
        variant = VARIANTS[re.search("|".join(VARIANTS), name)[0]]
        steps = find_steps(task, "labels-3" if variant == "plain" else variant)
        if name.startswith("mask") and steps:
            ratio = 1 if variant == "plain" else steps["summary"][variant]["cpu"]
            peaks = [steps["measured"][v]["peak_bytes"] for v in (variant, "plain")]
            memory = peaks[0] / peaks[1]
            cost = f"{ratio:.1f} | {memory:.2f}"
        yield f"[{name}](configs/{config}) | not trained here | {cost} | {theirs}"


def imagenet_rows() -> Iterator[str]:
    plain = find_steps("classification", "plain")
    rounds = plain["measured"]["plain"]["rounds"]
    flops = fmean(sum(step["flops"]) for step in rounds) / plain["workload"]["batch_size"]
    gradaug = find_steps("classification", "soft-3")["summary"]["soft-3"]["bound"]
    entries = read_index(CHECKOUT / INDEX_NAME).entries
    for file in sorted((ROOT / "configs/pretrain").glob("resnet50_*.yaml")):
        recipe = load_recipe(file)
        theirs = entries.get(f"{recipe.name}-authors")
        claims = "{top1} | {top5}".format(**theirs.info.metrics) if theirs else "| "
        ratio = gradaug if recipe.gradaug.num_subnets else 1
        total = flops * ratio * IMAGES * recipe.epochs
        # Of alternating passes some are narrower; how many is the recipe's to say.
        most = "at most " * (recipe.gradaug.passes == "alternating")
        yield (
            f"[{file.name}](configs/pretrain/{file.name}) | {most}{ratio:.1f} | "
            f"{most}{total / 1e18:.1f} | {most}{total / (8 * 10e12 * 3600):.0f} | {claims} | "
            "not trained here"
        )


def curve_rows() -> Iterator[str]:
    columns = []
    for name in ("baseline", "gradaug"):
        log = (ROOT / f"studies/mini_zoo/curve_{name}.log").read_text()
        columns += [re.findall(pattern, log) for pattern in (r"loss (\S+\d)", r"(\S+) % top-1")]
    for epoch, cells in enumerate(zip(*columns, strict=True), start=1):
        yield f"{epoch} | {' | '.join(cells)}"


def updated(text: str) -> str:
    """The document with today's rows; the heads of its tables are its own."""
    sources = {"mini": mini_rows, "demo": demo_rows, "coco": coco_rows}
    sources |= {"ImageNet": imagenet_rows, "curve": curve_rows}
    for name, rows in sources.items():
        pattern = rf"(<!-- {name}: begin -->\n.*\n.*\n)[^<]*"
        lines = "".join(f"| {row} |\n" for row in rows())
        text = re.sub(pattern, lambda match, lines=lines: match[1] + lines, text, count=1)
    backbones = backbone_table(read_index(CHECKOUT / INDEX_NAME).entries)
    table = f"<!-- backbones: begin -->\n{backbones}\n"
    return re.sub(r"<!-- backbones: begin -->\n[^<]*", lambda _: table, text, count=1)


def main() -> int:
    entries = read_index(CHECKOUT / INDEX_NAME).entries
    write_index(BUILT_IN, read_index(BUILT_IN).base_url, entries)
    text = updated(DOCUMENT.read_text(encoding="utf-8"))
    with atomic_path(DOCUMENT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
