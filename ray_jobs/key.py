"""``fetal key``: create, revoke and list API keys of the endpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import tyro
from rich.table import Table
from rich.text import Text

from fetal_core.api_keys import ApiKey, KeyStore
from fetal_core.config import nearest
from fetal_core.errors import ConfigError
from ray_jobs.command import parse_args, stage
from ray_jobs.console import console, errors, say

MAX_DAYS = 36_500


@dataclass
class CreateArgs:
    """Create an API key; it is shown this once and only its hash is kept."""

    label: tyro.conf.Positional[str]
    """Who or what will use it."""
    expires_days: float | None = None
    """Days until it ceases to be valid; without it, it is valid until revoked."""
    keys: str = "keys.json"
    """File of the keys, or s3://BUCKET/KEY."""


@dataclass
class RevokeArgs:
    """Make an API key invalid; running endpoints refuse it within about a second."""

    id: tyro.conf.Positional[str]
    """The key's id, as `fetal key list` shows it."""
    keys: str = "keys.json"
    """File of the keys, or s3://BUCKET/KEY."""


@dataclass
class ListArgs:
    """List all API keys ever created, without the keys themselves."""

    keys: str = "keys.json"
    """File of the keys, or s3://BUCKET/KEY."""


def create(argv: Sequence[str]) -> None:
    """The command line of ``fetal key create``; the key goes to standard output, alone."""
    args = parse_args(CreateArgs, argv, "fetal key create")
    key_id, secret = KeyStore(args.keys).create(args.label, _expiry(args.expires_days))
    errors.print(f"key {key_id}; store it now, it is not shown again:", markup=False)
    say(secret)


def revoke(argv: Sequence[str]) -> None:
    """The command line of ``fetal key revoke``."""
    args = parse_args(RevokeArgs, argv, "fetal key revoke")
    key = KeyStore(args.keys).revoke(args.id)
    say(f"key {key.id} ({key.label}) is revoked since {key.revoked:%Y-%m-%d %H:%M} UTC")


def show(argv: Sequence[str]) -> None:
    """The command line of ``fetal key list``."""
    args = parse_args(ListArgs, argv, "fetal key list")
    keys = KeyStore(args.keys).list()
    if not keys:
        say(f"{args.keys}: no keys; `fetal key create LABEL` creates one")
        return
    table = Table("id", "label", "created", "state", box=None)
    for key in keys:
        table.add_row(key.id, Text(key.label), f"{key.created:%Y-%m-%d}", _state(key))
    console.print(table)


ACTIONS: dict[str, Callable[[Sequence[str]], None]] = {
    "create": create,
    "revoke": revoke,
    "list": show,
}
USAGE = (
    "usage: fetal key create LABEL | revoke ID | list  [--keys FILE]\n"
    "`fetal key create --help` and so on list the arguments."
)


def main(argv: Sequence[str]) -> None:
    """The command line of this stage."""
    if argv and argv[0] in ("-h", "--help"):
        say(USAGE)
        return
    action = argv[0] if argv else ""
    if action not in ACTIONS:
        hint = nearest(action, list(ACTIONS)) or "."
        raise ConfigError(f"fetal key {action}: create, revoke or list is needed{hint}\n{USAGE}")
    ACTIONS[action](argv[1:])


def _expiry(days: float | None) -> datetime | None:
    if days is None:
        return None
    if not 0 < days <= MAX_DAYS:
        raise ConfigError(f"--expires-days {days}: give more than 0 and at most {MAX_DAYS} days.")
    return datetime.now(UTC) + timedelta(days=days)


def _state(key: ApiKey) -> str:
    if key.revoked is not None:
        return f"revoked {key.revoked:%Y-%m-%d}"
    if key.expires is None:
        return "valid"
    valid = key.is_valid(datetime.now(UTC))
    return f"{'valid until' if valid else 'expired'} {key.expires:%Y-%m-%d}"


if __name__ == "__main__":
    sys.exit(stage("key"))
