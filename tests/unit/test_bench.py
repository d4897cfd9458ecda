"""How the measurements in bench/ come to their figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.results import table, write_section
from bench.scale import Line
from bench.training.contenders import BF16, CEILING, FP32, LIGHTNING, OURS, PROBE, Contender, turn
from bench.training.ours import Seen, figures
from bench.training.summary import best_peer, ratios, speeds, targets


def one(contender: str, number: int, speed: float, **more: float) -> dict[str, object]:
    return {"contender": contender, "round": number, "images_per_s": speed, **more}


def test_a_section_replaces_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    write_section("Serving", "old serving", file)
    write_section("Training", "old training\n\n### a part of it", file)
    write_section("Scale", "scale", file)
    write_section("Training", "new training", file)
    text = file.read_text("utf-8")
    assert "old training" not in text
    assert "a part of it" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Serving",
        "## Training",
        "## Scale",
    ]
    assert "old serving\n\n## Training\n\nnew training\n\n## Scale\n\nscale\n" in text


def test_writing_a_section_again_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    for _ in range(2):
        for heading in ("Serving", "Training"):
            write_section(heading, table(("a", "b"), [["1", "2"]]), file)
    once = tmp_path / "once.md"
    for heading in ("Serving", "Training"):
        write_section(heading, table(("a", "b"), [["1", "2"]]), once)
    assert file.read_text("utf-8") == once.read_text("utf-8")


def test_ratios_are_those_of_a_round() -> None:
    turns = [one(OURS, 0, 10.0), one(CEILING, 0, 20.0), one(CEILING, 1, 5.0), one(OURS, 1, 5.0)]
    turns += [one(OURS, 2, 7.0), {"contender": CEILING, "round": 2, "error": "died"}]
    assert ratios(turns, OURS, CEILING) == [0.5, 1.0]


def test_the_best_peer_is_that_of_each_round() -> None:
    turns = [one(OURS, 0, 12.0), one(BF16, 0, 6.0), one(LIGHTNING, 0, 4.0), one(FP32, 0, 24.0)]
    turns += [one(OURS, 1, 12.0), one(BF16, 1, 3.0), one(LIGHTNING, 1, 4.0), one(OURS, 2, 1.0)]
    assert best_peer(turns) == [2.0, 3.0]


def test_targets_say_what_was_missed_and_what_was_not_measured() -> None:
    turns = [one(OURS, 0, 9.0, first_step_s=25.0), one(CEILING, 0, 9.1)]
    turns += [{"contender": PROBE, "round": 0, "later_epoch_share": 0.01}]
    words = [target.row()[-1] or target.row()[-2] for target in targets(turns)]
    assert words == ["met", "not measured", "not measured", "missed", "met"]


def test_who_does_not_run_is_reported_with_the_reason() -> None:
    turns = [one(CEILING, 0, 9.0), {"contender": LIGHTNING, "round": 0, "error": "no module"}]
    assert f"| {LIGHTNING} | does not run: no module |" in speeds(turns, CEILING)


def test_a_turn_that_fails_gives_the_last_line_it_said() -> None:
    program = "import sys; print('FIGURES {}'); sys.exit('it broke')"
    assert turn(Contender("broken", (sys.executable, "-c", program)), (), 60) == {
        "error": "it broke"
    }


def test_a_turn_gives_the_figures_that_were_printed() -> None:
    program = """print('noise\\nFIGURES {"images_per_s": 2.5}')"""
    found = turn(Contender("good", (sys.executable, "-c", program)), (), 60)
    assert found == {"images_per_s": 2.5}


def test_a_turn_ends_in_time() -> None:
    program = "import time; time.sleep(600)"
    found = turn(Contender("endless", (sys.executable, "-c", program)), (), 0.5)
    assert found == {"error": "not done after 0.5 s"}


def test_the_first_epoch_of_ours_does_not_count() -> None:
    def step(epoch: int, number: int, at_s: float, spent_s: float) -> Seen:
        return Seen({"kind": "step", "epoch": epoch, "step": number}, at_s, spent_s)

    def epoch(number: int, train_s: float, at_s: float) -> Seen:
        record = {"kind": "epoch", "epoch": number, "train_s": train_s}
        return Seen(record | {"images_per_s": 40 / train_s}, at_s, 0.0)

    seen = [Seen({"kind": "start", "steps": 4, "precision": "bf16"}, 9.0, 0.0)]
    seen += [step(1, 1, 10.0, 5.0), epoch(1, 100.0, 20.0)]
    seen += [step(2, 1, 30.0, 50.0), step(2, 3, 31.0, 90.0), epoch(2, 10.0, 32.0)]
    found = figures(seen)
    assert found["images_per_s"] == 4.0
    assert found["images"] == 80
    assert found["first_step_s"] == 10.0
    assert found["cpu_s_per_image"] == pytest.approx(2.0)  # two steps of ten images took 40 s


def test_a_line_parts_what_is_paid_once_from_what_is_paid_for_each() -> None:
    line = Line.through([100, 200, 400], [12.0, 14.0, 18.0])
    assert line.fixed_s == pytest.approx(10.0)
    assert line.each_s == pytest.approx(0.02)
    assert Line.through([50], [5.0]) == Line(0.0, 0.1)
