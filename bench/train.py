"""Speed of `fetal train` beside its limit and its peers.

    python -m bench.train --data DATA --peers peers/bin/python
    python -m bench.train --data DATA --only ceiling --only "fetal train" --rounds 1

DATA holds images and a label table. All contenders train the same network on the same images from
random weights; the ceiling is the bare optimizer step on one batch in memory. Each turn is a
process of its own, one at a time; each round begins with the next contender, and ratios are taken
within a round, since machines change their speed within minutes. Where others compute on the same
machine, the processor time an image says more than images a second.
For the peers an environment made from `bench/training/peers.txt` is needed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bench.results import machine, table, write_section
from bench.training import summary
from bench.training.contenders import (
    CEILING,
    ORIGINAL_FP32,
    Contender,
    Size,
    contenders,
    originals,
    turn,
)
from bench.training.data import make_cohort, phantom_twin

HEADING = "Training"
REAL, PHANTOM, ORIGINAL = "real images", "phantom twin", "original shape, real images"
_ORIGINAL = {"size_px": 661, "batch": 8, "steps": 2, "images": 16}


class Store:
    """Turns in their order; kept in a file, to which later runs add rounds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        self.turns: list[summary.Turn] = [json.loads(line) for line in lines]

    def add(self, one: summary.Turn) -> None:
        self.turns.append(one)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(one) + "\n")

    def of(self, cohort: str) -> list[summary.Turn]:
        return [one for one in self.turns if one["cohort"] == cohort]

    def next_round(self, cohort: str) -> int:
        return 1 + max((one["round"] for one in self.of(cohort)), default=-1)


def run_round(
    cohort: str, them: Sequence[Contender], store: Store, size: Size, args: argparse.Namespace
) -> None:
    """A turn of each."""
    number = store.next_round(cohort)
    first = number % len(them) if them else 0
    for contender in [*them[first:], *them[:first]]:
        figures = turn(contender, shlex.split(args.prefix), args.timeout)
        one = {"cohort": cohort, "round": number, "contender": contender.name, "size": asdict(size)}
        store.add(one | figures)
        print(f"{cohort}, round {number + 1}, {contender.name}: {_words(figures)}", flush=True)


def _words(figures: summary.Turn) -> str:
    if "error" in figures:
        return f"does not run: {figures['error']}"
    if summary.SPEED in figures:
        return f"{figures[summary.SPEED]:.2f} images/s"
    return f"a later epoch takes {figures.get('later_epoch_share', 0):.1%} of the first"


def measure(args: argparse.Namespace, folder: Path, store: Store) -> None:
    """All rounds of all cohorts."""
    prefix, only = shlex.split(args.prefix), args.only
    size = Size(args.architecture, args.size_px, args.batch, args.steps, args.images, args.epochs)
    linked = size.batch * (size.steps + 2)
    plans: list[tuple[str, list[Contender], Size]] = []
    for name in args.cohort:
        data = args.data if name == REAL else phantom_twin(args.data, folder, prefix)
        cohort = make_cohort(name.split()[0], data, folder, size.size_px, linked, prefix)
        here = replace(size, images=min(size.images, cohort.images // size.batch * size.batch))
        plans.append((name, contenders(cohort, here, args.peers), here))
    if args.original:
        shape = replace(size, **_ORIGINAL)
        cohort = make_cohort("original", args.data, folder, shape.size_px, 32, prefix)
        plans.append((ORIGINAL, originals(cohort, shape, args.peers or sys.executable), shape))
    for _ in range(args.rounds):
        for name, them, shape in plans:
            chosen = [one for one in them if not only or one.name in only]
            run_round(name, chosen, store, shape, args)


def report(store: Store) -> str:
    """Tables of all turns that are in the store, by cohort."""
    parts = [f"`python -m bench.train`. {machine()}", summary.versions(store.turns)]
    for name in dict.fromkeys(one["cohort"] for one in store.turns):
        turns = store.of(name)
        size = turns[-1]["size"]
        rounds = 1 + max(one["round"] for one in turns)
        parts.append(
            f"### {name}\n\n{size['architecture']}, {size['size_px']} px, batches of "
            f"{size['batch']}; {rounds} rounds: median (least to greatest), ratios within a round."
        )
        if name == ORIGINAL:
            parts.append(summary.speeds(turns, ORIGINAL_FP32))
            targets = [summary.original_target(turns)]
        else:
            parts.append(summary.speeds(turns, CEILING))
            targets = summary.targets(turns)
        parts.append(table(("ours", "target", "found", ""), [target.row() for target in targets]))
    return "\n\n".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of images and label table")
    parser.add_argument("--peers", help="python of the peers' environment")
    parser.add_argument("--rounds", type=int, default=3, help="0 writes the report of --turns")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="of the ceiling and the peers")
    parser.add_argument("--images", type=int, default=128, help="of ours in an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="of ours; the first does not count")
    parser.add_argument("--cohort", action="append", choices=(REAL, PHANTOM), help="both if none")
    parser.add_argument("--original", action="store_true", help="661 px in batches of 8 too")
    parser.add_argument("--only", action="append", default=[], help="name of a contender")
    parser.add_argument("--seconds", dest="timeout", type=float, default=900, help="of a turn")
    parser.add_argument("--folder", type=Path, help="to keep the prepared cohorts in")
    parser.add_argument("--turns", type=Path, help="file to add the turns to")
    parser.add_argument("--prefix", default="", help="words before each command, e.g. 'nice'")
    parser.add_argument("--no-results", action="store_true", help="only print them")
    args = parser.parse_args()
    args.cohort = args.cohort or [REAL, PHANTOM]
    args.data = args.data.resolve()
    return args


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        folder = args.folder.resolve() if args.folder else Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        store = Store(args.turns or folder / "turns.jsonl")
        measure(args, folder, store)
        text = report(store)
    print(f"\n{text}")
    if not args.no_results:
        write_section(HEADING, text)


if __name__ == "__main__":
    main()
