"""What the commands show on a terminal; plain lines where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fetal_core.errors import Problem

if TYPE_CHECKING:  # it imports torch, which most commands do not need at once
    from fetal_core.run_context import Event

console = Console(soft_wrap=True, highlight=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

_SHOWN_WARNINGS = 10


def say(text: str) -> None:
    """Print a line; square brackets mean nothing special."""
    console.print(text, markup=False)


def show_problems(problems: Sequence[Problem], limit: int | None = _SHOWN_WARNINGS) -> None:
    """List findings, errors first."""
    ordered = sorted(problems, key=lambda problem: problem.severity)
    for problem in ordered[:limit]:
        say(f"{problem.severity}: {problem}")
    if limit is not None and len(ordered) > limit:
        say(f"... and {len(ordered) - limit} more; `fetal audit` lists all")


@contextmanager
def progress_bar(title: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A bar that is called with (done, total)."""
    with _progress() as bar:
        task = bar.add_task(f"{title} ({unit})", total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


class TrainingView:
    """A bar for the steps of the running epoch, and one line for each epoch that is done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._epochs = self._steps = self._workers = 0

    def __call__(self, event: Event) -> None:
        """Show an event of a training run."""
        handler: Callable[[Event], None] = getattr(self, f"_on_{event['kind']}")
        handler(event)

    def _on_starting(self, event: Event) -> None:
        self._task = self._progress.add_task("starting workers", total=None)

    def _on_finished(self, event: Event) -> None:
        say("this run is finished; choose another --name to train again")

    def _on_forced(self, event: Event) -> None:
        say("warning: forced on in spite of what has changed since the run began:")
        for line in event["differences"]:
            say(f"  - {line}")

    def _on_start(self, event: Event) -> None:
        self._epochs, self._steps = event["epochs"], event["steps"]
        if event["steps_done"]:
            say(f"resuming {_inside(event)}")
        elif event["epochs_done"]:
            say(f"resuming after epoch {event['epochs_done']} of {self._epochs}")
        shares, before = event["shares"], self._workers
        self._workers = len(shares)
        if self._workers > 1 or before not in (0, 1):
            parts = " + ".join(map(str, shares))
            say(f"workers: {self._workers}, with {parts} images of each batch of {sum(shares)}")

    def _on_lost(self, event: Event) -> None:
        say("a worker was lost; training goes on from its last checkpoint once there are enough")

    def _on_draining(self, event: Event) -> None:
        say("a machine is about to be taken: a checkpoint is written ahead")

    def _on_kept(self, event: Event) -> None:
        pass

    def _on_stopping(self, event: Event) -> None:
        say("writing a checkpoint before the end; Ctrl-C again ends at once")

    def _on_stopped(self, event: Event) -> None:
        say(f"checkpoint written {_inside(event)}")

    def _on_step(self, event: Event) -> None:
        if self._task is not None:
            text = f"epoch {event['epoch']}/{self._epochs}, loss {event['loss']:.3f}"
            self._progress.update(
                self._task, description=text, completed=event["step"], total=self._steps
            )

    def _on_skipped(self, event: Event) -> None:
        say(f"batch left out in epoch {event['epoch']}, step {event['step']}: {event['fault']}")

    def _on_epoch(self, event: Event) -> None:
        say(f"epoch {event['epoch']:>3}/{self._epochs}  {_figures(event)}")

    def _on_probe(self, event: Event) -> None:
        history: list[dict[str, Any]] = event["history"]
        best = [record for record in history if record["is_best"]][-1]
        say(f"features computed once in {event['features_s']:.1f} s")
        say(f"linear head, epoch {best['epoch']} of {len(history)}  {_figures(best)}")


def _inside(event: Event) -> str:
    """How far a run is that has begun an epoch."""
    epoch, epochs = event["epochs_done"] + 1, event["epochs"]
    return f"in epoch {epoch} of {epochs}, after step {event['steps_done']} of {event['steps']}"


@contextmanager
def training_view() -> Iterator[TrainingView]:
    """Shows a training run while the block lasts."""
    with _progress() as progress:
        yield TrainingView(progress)


def _figures(record: Event) -> str:
    best = "  best so far" if record["is_best"] else ""
    speed = f"  {record['images_per_s']:.1f} images/s" if "images_per_s" in record else ""
    return (
        f"train loss {record['train_loss']:.3f} accuracy {record['train_accuracy']:6.1%}  "
        f"val loss {record['val_loss']:.3f} accuracy {record['val_accuracy']:6.1%} "
        f"macro-F1 {record['val_macro_f1']:.3f}  {record['epoch_s']:.1f} s{speed}{best}"
    )


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
