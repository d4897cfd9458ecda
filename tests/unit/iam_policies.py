"""IAM policies: whether they allow a request, and an S3 server that asks them.

Decides as AWS does for the parts of the language that the policies here use, and fails on others.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from s3_servers import Environ, Server

Policy = dict[str, Any]

DEPLOYMENT = Path(__file__).resolve().parents[2] / "deploy" / "aws"
ACCOUNT = "123456789012"
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>denied</Message></Error>"
S3_XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def load(file: str, **values: str) -> Policy:
    """A policy of ``deploy/aws`` with its placeholders filled in."""
    text = (DEPLOYMENT / file).read_text("utf-8")
    for name, value in {"ACCOUNT": ACCOUNT, "REGION": "eu-central-1", **values}.items():
        text = text.replace(name, value)
    policy: Policy = json.loads(text)
    return policy


def allows(
    policy: Policy, action: str, resource: str, context: Mapping[str, str] | None = None
) -> bool:
    matching = {
        statement["Effect"]
        for statement in policy["Statement"]
        if _any_like(action, statement["Action"])
        and _any_like(resource, statement["Resource"])
        and _holds(statement.get("Condition", {}), context or {})
    }
    return "Allow" in matching and "Deny" not in matching


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, keys in conditions.items():
        match: Callable[[str, Any], bool] = {"StringLike": _any_like, "StringEquals": _is_one}[
            operator
        ]
        if any(key not in context or not match(context[key], keys[key]) for key in keys):
            return False
    return True


def _is_one(value: str, wanted: str | list[str]) -> bool:
    return value in ([wanted] if isinstance(wanted, str) else wanted)


def _any_like(value: str, patterns: str | list[str]) -> bool:
    return any(_like(value, p) for p in ([patterns] if isinstance(patterns, str) else patterns))


def _like(value: str, pattern: str) -> bool:
    parts = {"*": ".*", "?": "."}
    expression = "".join(parts.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch(expression, value, re.DOTALL) is not None


Need = tuple[str, str, tuple[tuple[str, str], ...]]


def needs(environ: Environ) -> list[Need]:
    """Actions, resources and context that AWS asks the policies about for a request to S3."""
    bucket, _, key = urllib.parse.unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    method, arn = environ["REQUEST_METHOD"], f"arn:aws:s3:::{bucket}"
    if not key:
        if method == "POST" and "delete" in query:
            return [("s3:DeleteObject", f"{arn}/{found}", ()) for found in _named(environ)]
        if method in ("GET", "HEAD") and not {"location", "versioning"} & query.keys():
            prefix = (("s3:prefix", query["prefix"]),) if "prefix" in query else ()
            return [("s3:ListBucket", arn, prefix)]
        return [(f"s3:{method} on a bucket: {sorted(query)}", arn, ())]
    actions = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}
    if method == "DELETE":
        action = "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    else:
        action = actions[method]
    return [(f"s3:{action}", f"{arn}/{key}", ())]


def _named(environ: Environ) -> Iterable[str]:
    """The keys in the body of a DeleteObjects request, which stays readable."""
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    environ["wsgi.input"] = BytesIO(body)
    root = ElementTree.fromstring(body)
    return [node.text or "" for node in root.iter() if node.tag.removeprefix(S3_XML) == "Key"]


def _listing(asked: list[Need]) -> list[Need]:
    """What AWS asks about where an object is not there: its key takes the place of a prefix."""
    return [
        ("s3:ListBucket", bucket, (("s3:prefix", key),))
        for _, resource, _ in asked
        for bucket, _, key in [resource.partition("/")]
        if key
    ]


class GuardedServer(Server):
    """S3 for one role; remembers what it was asked for.

    Attributes:
        policy: what the role may do; None while the test itself prepares.
        used: all that was needed.
        refused: what was needed and not allowed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.policy: Policy | None = None
        self.used: set[Need] = set()
        self.refused: set[Need] = set()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.policy is None:
            return super().__call__(environ, start_response)
        asked, began = needs(environ), []
        if not self._refuses(asked):
            body = super().__call__(environ, lambda *answer: began.append(answer))
            # Who may not list a key is not told either that there is none.
            if not began[0][0].startswith("404") or not self._refuses(_listing(asked)):
                start_response(*began[0])
                return body
        start_response("403 Forbidden", [("Content-Type", "application/xml")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else DENIED]

    def _refuses(self, asked: list[Need]) -> bool:
        assert self.policy is not None
        self.used |= set(asked)
        allowed = {need for need in asked if allows(self.policy, *need[:2], dict(need[2]))}
        refused = set(asked) - allowed
        self.refused |= refused
        return bool(refused)
