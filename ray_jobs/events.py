"""Progress events on their way from training workers to the driver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from fetal_core.run_context import Event

_POLL_S = 0.25


class Mailbox:
    """An actor that keeps events for the driver, and what the driver has for the workers."""

    def __init__(self) -> None:
        """An empty mailbox."""
        self._events: list[Event] = []
        self._delivery: list[Any] | None = None
        self._stop = False

    def put(self, event: Event) -> bool:
        """Add an event; returns whether the training is asked to stop."""
        self._events.append(event)
        return self._stop

    def ask_to_stop(self) -> None:
        """Let every later event be answered with the wish to stop."""
        self._stop = True

    def take(self) -> list[Event]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events

    def deliver(self, values: list[Any]) -> None:
        """Keep something for all workers."""
        self._delivery = values

    def delivered(self) -> list[Any] | None:
        """What was delivered, None before."""
        return self._delivery


@contextmanager
def listening(on_event: Callable[[Event], None], stop: threading.Event) -> Iterator[Any]:
    """A mailbox actor whose events reach ``on_event``, in a thread of the driver, in order.

    Once ``stop`` is set, the training is asked to, which an event ``stopping`` tells.
    """
    # Beside the driver: events outlive the machines of the workers.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Mailbox)
    mailbox = actor.options(scheduling_strategy=here).remote()
    ended = threading.Event()

    failures: list[Exception] = []

    def tell(event: Event) -> None:
        try:
            on_event(event)
        except Exception as error:
            # The training goes on; the first failure is told at its end.
            failures.append(error)

    def drain() -> None:
        for event in ray.get(mailbox.take.remote()):
            tell(event)

    def loop() -> None:
        asked = False
        while not ended.wait(_POLL_S):
            if stop.is_set() and not asked:
                asked = True
                mailbox.ask_to_stop.remote()
                tell({"kind": "stopping"})
            drain()

    thread = threading.Thread(target=loop, name="events", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        ended.set()
        thread.join()
        with suppress(RayError):
            drain()
            ray.kill(mailbox)
    if failures:
        raise failures[0]
