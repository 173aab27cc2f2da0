"""The plain-language summary of a report. Every sentence follows from numbers in it."""

from __future__ import annotations

from gradaug_det.evaluation.coco import TASK_NAMES
from gradaug_det.reports.rendering import signed
from studies.report.comparison import Method, difference, step_time_ratio

# Differences that round to 0.0 are called equal, in the one decimal that AP is quoted with.
_EQUAL = 0.05
_BARELY_TRAINED = 5.0
_SIZES = {"APs": "small", "APm": "medium-sized", "APl": "large"}


def summarise(methods: list[Method]) -> list[str]:
    """Put the result into sentences.

    Args:
        methods: the baseline first.

    Returns:
        Paragraphs: one for each method compared with the baseline, or one for a baseline alone.
    """
    baseline, *others = methods
    if not others:
        return [_describe(baseline)]
    return [" ".join(_compare(method, baseline)) for method in others]


def _describe(method: Method) -> str:
    reached = [
        f"{method.mean(task, 'AP'):.1f} {name} AP"
        for task, name in TASK_NAMES.items()
        if method.mean(task, "AP") is not None
    ]
    if not reached:
        return f"{method.label} has no AP: nothing was evaluated."
    seeds = f" (mean of {len(method.runs)} seeds)" if len(method.runs) > 1 else ""
    return (
        f"{method.label} reaches {' and '.join(reached)}{seeds} after "
        f"{method.runs[0].iterations} iterations. Nothing was compared."
    )


def _compare(method: Method, baseline: Method) -> list[str]:
    deltas = {
        task: delta
        for task in TASK_NAMES
        if (delta := difference(method, baseline, task, "AP")) is not None
    }
    if not deltas:
        return [f"{method.label} and {baseline.label} have no AP in common to compare."]
    sentences = [_headline(method, baseline, deltas), *_seeds(method, baseline, deltas)]
    main_task = next(iter(deltas))
    sentences += _low(method, baseline, main_task)
    sentences += _by_size(method, baseline, main_task)
    sentences += _by_category(method, baseline, main_task)
    sentences += _cost(method, baseline)
    return sentences


def _headline(method: Method, baseline: Method, deltas: dict[str, float]) -> str:
    parts = []
    for task, delta in deltas.items():
        name = TASK_NAMES[task]
        numbers = f"({method.mean(task, 'AP'):.1f} against {baseline.mean(task, 'AP'):.1f})"
        # The baseline is named once; after that "it" is enough.
        other = baseline.label if not parts else "it"
        if abs(delta) < _EQUAL:
            parts.append(f"equal to {other} in {name} AP {numbers}")
        else:
            direction = "above" if delta > 0 else "below"
            parts.append(f"{abs(delta):.1f} {name} AP {direction} {other} {numbers}")
    average = "on average " if max(len(method.runs), len(baseline.runs)) > 1 else ""
    return f"{method.label} is {average}{' and '.join(parts)}."


def _seeds(method: Method, baseline: Method, deltas: dict[str, float]) -> list[str]:
    """What the seeds allow to conclude: nothing from one, an overlap of ranges from more."""
    if len(method.runs) == len(baseline.runs) == 1:
        return [
            "Each was trained with one seed, so the spread between seeds is unknown and nobody can "
            f"tell how much of {'these differences' if len(deltas) > 1 else 'this difference'} is "
            "chance."
        ]
    sentences = []
    for task in deltas:
        ours, theirs = method.values(task, "AP"), baseline.values(task, "AP")
        counts = (
            f"{_ranged(ours)} over {_counted(ours)} against "
            f"{_ranged(theirs)} over {_counted(theirs)}"
        )
        apart = min(ours) > max(theirs) or max(ours) < min(theirs)
        verdict = (
            "the ranges do not overlap" if apart else "the difference is within the spread of seeds"
        )
        sentences.append(f"In {TASK_NAMES[task]} AP, {verdict} ({counts}).")
    return sentences


def _low(method: Method, baseline: Method, task: str) -> list[str]:
    if max(method.mean(task, "AP"), baseline.mean(task, "AP")) >= _BARELY_TRAINED:
        return []
    return [
        f"Both are below {_BARELY_TRAINED:.0f} {TASK_NAMES[task]} AP: these detectors are barely "
        "trained, and the comparison says little."
    ]


def _by_size(method: Method, baseline: Method, task: str) -> list[str]:
    deltas = {metric: difference(method, baseline, task, metric) for metric in _SIZES}
    known = {metric: delta for metric, delta in deltas.items() if delta is not None}
    if len(known) < 2:
        return []
    metric = max(known, key=lambda m: abs(known[m]))
    if abs(known[metric]) < _EQUAL:
        return []
    return [
        f"By object size, {TASK_NAMES[task]} AP differs most for {_SIZES[metric]} objects "
        f"({signed(known[metric], 1)})."
    ]


def _by_category(method: Method, baseline: Method, task: str) -> list[str]:
    names = [name for name in baseline.categories(task) if name in method.categories(task)]
    deltas = [difference(method, baseline, task, f"AP-{name}") for name in names]
    known = [delta for delta in deltas if delta is not None]
    if len(known) < 2:
        return []
    higher = sum(delta >= _EQUAL for delta in known)
    lower = sum(delta <= -_EQUAL for delta in known)
    return [
        f"{TASK_NAMES[task].capitalize()} AP is higher in {higher} and lower in {lower} of "
        f"{len(known)} categories."
    ]


def _cost(method: Method, baseline: Method) -> list[str]:
    sentences = []
    ratio = step_time_ratio(method, baseline)
    if ratio is not None:
        sentences.append(
            f"A training step took {ratio:.2f} times as long as one of {baseline.label}."
        )
    ours, theirs = method.runs[0], baseline.runs[0]
    if ours.iterations != theirs.iterations:
        sentences.append(
            f"They were not trained equally long: {ours.iterations} iterations against "
            f"{theirs.iterations}."
        )
    if ours.num_parameters is not None and theirs.num_parameters is not None:
        if ours.num_parameters == theirs.num_parameters:
            sentences.append(f"Both networks have {ours.num_parameters:,} parameters.")
        else:
            sentences.append(
                f"The networks differ in size: {ours.num_parameters:,} parameters against "
                f"{theirs.num_parameters:,}."
            )
    return sentences


def _counted(values: list[float]) -> str:
    return f"{len(values)} seed{'' if len(values) == 1 else 's'}"


def _ranged(values: list[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"
