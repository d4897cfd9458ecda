"""Models by name, and replicas that follow an alias of the registry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from fetal_core import storage
from fetal_core.bundle import MODEL
from fetal_core.conditional import Snapshot
from fetal_core.errors import ConfigError, FetalError
from fetal_core.registry import Registry
from ray_jobs.served import ServedModel

logger = logging.getLogger(__name__)

_DEFAULT_ALIAS = "champion"
_TRY_AGAIN_S = 30.0  # a version that was refused may have been mended


class Found(NamedTuple):
    """A model that may be served; ``number`` is None for a bundle outside a registry."""

    name: str
    number: int | None
    uri: str

    @property
    def version(self) -> str:
        """As answers show it."""
        return str(self.number or 0)


def find_model(model: str, registry: str) -> Found:
    """What a bundle's folder, or ``NAME@ALIAS`` of a registry, stands for now.

    Raises:
        FetalError: there is no such model.
    """
    if storage.is_file(storage.join(model, MODEL)):
        return Found(storage.name(model), None, model)
    name, at, alias = model.partition("@")
    if not storage.exists(registry):
        raise ConfigError(
            f"{model}: neither a model bundle nor, without a registry at "
            f"{registry}, a registered model. Give a bundle's folder, or --registry."
        )
    number, uri = Registry(registry).resolve(name, alias if at else _DEFAULT_ALIAS)
    return Found(name, number, uri)


def earlier_versions(model: str, registry: str) -> list[Found]:
    """What an alias stood for before, the latest first; nothing for a bundle.

    Raises:
        FetalError: the registry does not answer.
    """
    name, at, alias = model.partition("@")
    if storage.is_file(storage.join(model, MODEL)) or alias.isdecimal():
        return []
    known = Registry(registry)
    previous = known.alias_state(name, alias if at else _DEFAULT_ALIAS).previous
    return [Found(name, *known.resolve(name, number)) for number in reversed(previous)]


class Follower:
    """Loads what a name stands for, again and again.

    Args:
        model: as for :func:`find_model`.
        registry: likewise.
        load: makes a model ready to answer; raises where it cannot be used, an engine with errors
            of its own.
        use: given each model that was loaded after the first.
    """

    def __init__(
        self,
        model: str,
        registry: str,
        load: Callable[[Found], ServedModel],
        use: Callable[[ServedModel], None],
    ) -> None:
        self._model, self._registry = model, registry
        self._load, self._use = load, use
        self._now: Found | None = None
        self._found: Found | None = None
        self._alias: Snapshot | None = None
        self._refused: Found | None = None
        self._told = ""
        self._try_again_s = 0.0

    def first(self) -> ServedModel:
        """The model to begin with: an earlier version where the promoted one cannot be used.

        Raises:
            FetalError: there is none that can be used; why the promoted one cannot.
        """
        found = self._find()
        try:
            served = self._load(found)
        except Exception as error:
            self._refuse(found, error)
            for earlier in earlier_versions(self._model, self._registry):
                with suppress(Exception):
                    served = self._load(earlier)
                    self._now = earlier
                    return served
            raise
        self._now = found
        return served

    async def look(self) -> None:
        """Exchange the model if its name stands for another one by now.

        One that cannot be used is passed over, and tried again later: it may have been mended. One
        that the name does not stand for any more once it is loaded is not used.
        """
        if (wanted := await self._wanted()) is None or wanted == self._now:
            return
        if wanted == self._refused and time.monotonic() < self._try_again_s:
            return
        try:
            served = await asyncio.to_thread(self._load, wanted)
        except Exception as error:
            self._refuse(wanted, error)
            return
        if await self._wanted() != wanted:
            return
        self._use(served)
        self._now, self._refused = wanted, None
        logger.info("%s: version %s serves now", self._model, served.version)

    async def _wanted(self) -> Found | None:
        """What the name stands for, or None where that cannot be told now."""
        try:
            found = await asyncio.to_thread(self._find)
        except Exception as error:
            if (what := _told(error)) != self._told:
                logger.warning("%s: what served before goes on: %s", self._model, what)
            self._told = what
            return None
        self._told = ""
        return found

    def _refuse(self, wanted: Found, error: Exception) -> None:
        """Remember what cannot be used; told once, not at every look."""
        if wanted != self._refused:
            logger.warning("%s: what served before goes on: %s", self._model, _told(error))
        self._refused, self._try_again_s = wanted, time.monotonic() + _TRY_AGAIN_S

    def _find(self) -> Found:
        """What the name stands for: one small request while its alias stands still.

        Bundles and numbers of versions stand for the same for good.
        """
        name, at, alias = self._model.partition("@")
        now = None
        if (found := self._found) is not None:
            if found.number is None or alias.isdecimal():
                return found
            alias = alias if at else _DEFAULT_ALIAS
            now = Registry(self._registry).alias_file(name, alias, self._alias)
            if now is not None and now == self._alias:
                return found
        self._found, self._alias = find_model(self._model, self._registry), now
        return self._found


def _told(error: Exception) -> str:
    """An error in the log; the project's own say what they are about."""
    return str(error) if isinstance(error, FetalError) else f"{type(error).__name__}: {error}"
