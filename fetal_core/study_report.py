"""The comparison of a sweep's arms in words, as tables of its page and as lines of a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fetal_core.bootstrap import Interval
from fetal_core.markup import Html, element, number, percent, section, table
from fetal_core.search import Value
from fetal_core.study import LEVEL, ArmResult, Figure, HypothesisResult, StudyResult
from fetal_core.study_config import Measure

_MEASURES: Mapping[Measure, str] = {
    "accuracy": "validation accuracy",
    "macro_f1": "validation macro F1",
    "gap": "gap between training and validation accuracy",
}
_METRICS = {"val_accuracy": "accuracy", "val_macro_f1": "macro F1"}


def study_section(result: StudyResult) -> Html:
    """A table of the arms, one of the hypotheses with a sentence each, and what limits them."""
    if not result.arms and not result.hypotheses:
        return Html("")
    sentences = [element("li", verdict_sentence(result, found)) for found in result.hypotheses]
    return section(
        "Comparison of arms",
        _hypothesis_table(result) if result.hypotheses else Html(""),
        element("ul", *sentences) if sentences else Html(""),
        _arm_table(result) if result.arms else Html(""),
        *(element("p", note, css="note") for note in study_notes(result)),
    )


def study_lines(result: StudyResult) -> list[str]:
    """The same as plain text."""
    lines = [_arm_line(arm) for arm in result.arms]
    for found in result.hypotheses:
        lines += [f'"{found.hypothesis.claim}"', f"  {verdict_sentence(result, found)}"]
    return lines + study_notes(result)


def verdict_sentence(result: StudyResult, found: HypothesisResult) -> str:
    """Verdict, difference, interval and number of seeds; a caution where seeds may outweigh it."""
    verdict = found.verdict.capitalize()
    if found.difference is None:
        return f"{verdict}: {found.reason}."
    hypothesis = found.hypothesis
    measure = hypothesis.measure
    first, second = _figures(result, found)
    difference = (
        f"{verdict}: {hypothesis.arm}'s {_MEASURES[measure]} is "
        f"{_side(found.difference, measure)} {hypothesis.other}'s"
    )
    seeds = _seeds(first, second)
    if found.interval is None:
        return f"{difference} ({seeds}), but {found.reason}."
    interval = f"{percent(LEVEL, 0)} interval {_ends(found.interval, measure)}"
    sentence = f"{difference} ({interval} by {result.unit}, {seeds})."
    if found.verdict == "undecided":
        return sentence
    return sentence + _caution(found.difference, first, second, measure)


def study_notes(result: StudyResult) -> list[str]:
    """What limits the comparison."""
    if not result.arms:
        return []
    units = f"{result.unit}s"
    notes = [_selection_note(result)]
    notes += [
        f"{arm.name}: {arm.candidates - arm.complete} of {arm.candidates} candidates are left out, "
        "as not all of their seeds have finished."
        for arm in result.arms
        if arm.complete < arm.candidates
    ]
    notes += [
        f"{arm.name}: the best {name} = {_value(arm.settings[name])} is at the end of the values "
        "that were tried; a better one may lie beyond."
        for arm in result.arms
        for name in arm.edges
    ]
    if any(found.interval for found in result.hypotheses):
        notes.append(
            f"The intervals (percentile bootstrap, {result.resamples:,} draws of "
            f"{result.patients:,} validation and {result.train_patients:,} training {units} with "
            f"all their images, the same for both arms) tell how much the differences would vary "
            f"with other {units}, not with other seeds: their spread stands beside the means."
        )
    if result.unit != "patient":
        notes.append(
            "Patients are not known for all images: if several images show the same patient, the "
            "intervals are too narrow."
        )
    if (count := len(result.hypotheses)) > 1:
        chance = min(1.0, count * (1 - LEVEL))
        notes.append(
            f"Each interval stands for itself: the chance of a false verdict among {count} "
            f"hypotheses may be as high as {percent(chance, 0)}."
        )
    return notes


def _selection_note(result: StudyResult) -> str:
    counts = {arm.name: arm.complete for arm in result.arms}
    metric = _METRICS.get(result.metric, result.metric)
    chosen = (
        f"Every arm is shown at the settings with the best mean {metric} over seeds, chosen on the "
        "validation images that it is compared on, as was the best epoch: all figures are "
        "somewhat too good. "
    )
    if len(set(counts.values())) == 1:
        each = next(iter(counts.values()))
        return f"{chosen}The arms had equally many candidates to choose from ({each} each)."
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f"{chosen}The arms did not have equally many candidates to choose from ({listed}), which "
        "favours those with more."
    )


def _hypothesis_table(result: StudyResult) -> Html:
    rows: list[list[object]] = []
    for found in result.hypotheses:
        measure = found.hypothesis.measure
        shown: object = "-"
        if found.difference is not None:
            ends = _ends(found.interval, measure) if found.interval else "no interval"
            signed = _number(found.difference, measure, signed=True)
            shown = element("td", signed, element("small", ends))
        spreads = [_deviation(figure, measure) for figure in _figures(result, found)]
        rows.append(
            [
                found.hypothesis.claim,
                _MEASURES[measure].capitalize(),
                shown,
                " and ".join(spreads) or "-",
                found.verdict.capitalize(),
            ]
        )
    head = ["Claim", "Measure", "Difference", "Deviation over seeds", "Verdict"]
    caption = (
        f"Differences between arms in means over seeds, with {percent(LEVEL, 0)} intervals by "
        f"{result.unit}; accuracies in percentage points"
    )
    return table(caption, head, rows)


def _arm_table(result: StudyResult) -> Html:
    rows: list[list[object]] = []
    for arm in result.arms:
        settings = [element("small", f"{k} = {_value(v)}") for k, v in arm.settings.items()]
        rows.append(
            [
                arm.name,
                element("td", *settings),
                *(_cell(arm, name) for name in ("accuracy", "macro_f1", "train_accuracy", "gap")),
                str(len(arm.trials)),
                f"{arm.parameters / 1e6:.1f} M",
                f"{arm.best_epoch:.1f}",
                _duration(arm.work_s),
            ]
        )
    head = ["Arm", "Settings", "Accuracy", "Macro F1", "Training accuracy", "Gap"]
    head += ["Seeds", "Parameters", "Best epoch", "Time a trial"]
    caption = (
        "Each arm at its best settings: means over seeds, with standard deviations; the gap is "
        "training minus validation accuracy"
    )
    return table(caption, head, rows)


def _cell(arm: ArmResult, name: str) -> Html:
    figure = arm.figures[name]
    shown = number(figure.mean) if name == "macro_f1" else percent(figure.mean)
    return element("td", shown, element("small", f"± {_deviation(figure, name)}"))


def _arm_line(arm: ArmResult) -> str:
    accuracy, gap = arm.figures["accuracy"], arm.figures["gap"]
    settings = ", ".join(f"{name} = {_value(value)}" for name, value in arm.settings.items())
    return (
        f"{arm.name}: accuracy {percent(accuracy.mean)} ± {_deviation(accuracy, 'accuracy')}, "
        f"macro F1 {number(arm.figures['macro_f1'].mean)}, "
        f"gap {100 * gap.mean:z.1f} points; {_count(len(arm.trials), 'seed')}, "
        f"best of {_count(arm.complete, 'candidate')}: {settings or 'the recipe as it is'}"
    )


def _figures(result: StudyResult, found: HypothesisResult) -> tuple[Figure, ...]:
    """Of the arm and of the other; empty where one has no result."""
    arms = {arm.name: arm for arm in result.arms}
    names = (found.hypothesis.arm, found.hypothesis.other)
    if not set(names) <= arms.keys():
        return ()
    return tuple(arms[name].figures[found.hypothesis.measure] for name in names)


def _caution(difference: float, first: Figure, second: Figure, measure: Measure) -> str:
    if first.deviation is None or second.deviation is None:
        return " With a single seed this may be chance of the training."
    error = math.hypot(
        first.deviation / math.sqrt(len(first.by_seed)),
        second.deviation / math.sqrt(len(second.by_seed)),
    )
    if abs(difference) >= 2 * error:
        return ""
    unit = "" if measure == "macro_f1" else " points"
    return (
        f" But the seeds scatter as much: its standard error over them is "
        f"{_number(error, measure)}{unit}."
    )


def _side(difference: float, measure: Measure) -> str:
    if difference == 0:
        return "equal to"
    unit = "" if measure == "macro_f1" else " points"
    side = "above" if difference > 0 else "below"
    return f"{_number(abs(difference), measure)}{unit} {side}"


def _ends(interval: Interval, measure: Measure) -> str:
    return " to ".join(_number(end, measure) for end in interval)


def _number(value: float, measure: str, signed: bool = False) -> str:
    """Macro F1 as it is, shares in percentage points."""
    sign = "+" if signed else ""
    return f"{value:{sign}z.3f}" if measure == "macro_f1" else f"{100 * value:{sign}z.1f}"


def _deviation(figure: Figure, measure: str) -> str:
    return "-" if figure.deviation is None else _number(figure.deviation, measure)


def _seeds(first: Figure, second: Figure) -> str:
    counts = (len(first.by_seed), len(second.by_seed))
    if counts[0] == counts[1]:
        return _count(counts[0], "seed")
    return f"{counts[0]} and {counts[1]} seeds"


def _count(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _value(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f}\N{NO-BREAK SPACE}s"
        if seconds < 120
        else f"{seconds / 60:.1f}\N{NO-BREAK SPACE}min"
    )
