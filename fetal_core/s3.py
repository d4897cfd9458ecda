"""The S3 client: settings from AWS's environment and files, one patience, errors in plain words."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

from botocore import exceptions as boto_errors

from fetal_core.errors import ConfigError, StorageError, StoreAwayError

ResultT = TypeVar("ResultT")

PATIENCE = "FETAL_STORAGE_RETRY_S"
"""Environment variable: seconds for which a store that does not answer is asked again."""

MISSING = frozenset({"NoSuchKey", "404"})
CONNECTIONS = 32
_PATIENCE_S = 60.0
_FIRST_CONTACT_S = 3.0
_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 5.0
_CONNECT_S, _READ_S = 5, 30
_BUSY = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_NO_CREDENTIALS = (
    "no AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE, or attach a role to this machine"
)
_REASONS = {
    "InvalidAccessKeyId": "the store does not know this access key. Check AWS_ACCESS_KEY_ID or "
    "AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key. Check "
    "AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "ExpiredToken": "the session token has expired. Sign in again",
    "InvalidTokenId": "the session token is not valid. Check AWS_SESSION_TOKEN, or sign in again",
    "InvalidToken": "the session token is not valid. Check AWS_SESSION_TOKEN, or sign in again",
    "NoSuchBucket": "no such bucket. Check its name, or create it",
    "AccessDenied": "access denied. docs/storage.md lists the permissions that are needed",
    "403": "access denied. docs/storage.md lists the permissions that are needed",
    "RequestTimeTooSkewed": "the clock of this machine is wrong. Set it",
}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301"}


def client() -> Any:
    """The client for the present environment; safe for threads."""
    return _client(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


@lru_cache(maxsize=8)
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    # These take a quarter of a second to import: only where there is something in S3.
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},  # `call` repeats
        connect_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        max_pool_connections=CONNECTIONS,
        user_agent="fetal-planes",  # botocore's own takes a fifth of the time of a request
    )
    return boto3.session.Session().client("s3", config=config)


def place(uri: str) -> dict[str, str]:
    """Bucket and key of ``s3://BUCKET/KEY``; the key may be empty.

    Keys are taken as they are written: no character of them is an escape.

    Raises:
        StorageError: another scheme, or no bucket.
    """
    scheme, _, path = uri.partition("://")
    bucket, _, key = path.partition("/")
    if scheme != "s3":
        raise StorageError(f"{uri}: no storage is known for {scheme}://. Use a path or s3://.")
    if not bucket:
        raise StorageError(f"{uri}: names no bucket. Write s3://BUCKET/PREFIX.")
    return {"Bucket": bucket, "Key": key}


@dataclass
class _Contact:
    """Buckets that have answered this process, and those that have ceased to.

    After patience has ended once, requests for the next of a thousand objects do not wait again.
    """

    hasty: bool = False
    reached: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def answered(self, bucket: str) -> None:
        self.reached.add(bucket)
        self.lost.discard(bucket)


_contact = _Contact()


def tell_at_once() -> None:
    """Give up within seconds on a bucket that has never answered this process.

    For commands, whose users may have mistyped it; the workers they start are patient from the
    beginning.
    """
    _contact.hasty = True


def patience_s() -> float:
    """For how long a store that does not answer is asked again.

    Raises:
        ConfigError: the environment variable is not a number of seconds.
    """
    text = os.environ.get(PATIENCE, str(_PATIENCE_S))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{PATIENCE}={text}: not a number of seconds. Give one of 0 or more.")
    return value


def call(
    uri: str,
    doing: str,
    act: Callable[[Any], ResultT],
    answers: Container[str] = (),
    within_s: float | None = None,
) -> ResultT:
    """Send a request that may be repeated, until it is answered or patience ends.

    Args:
        uri: what it is about, for messages.
        doing: as in "cannot be ``doing``".
        act: sends it through the client it is given and reads the whole answer.
        answers: error codes that are answers to the caller.
        within_s: patience; None takes ``patience_s``.

    Raises:
        ClientError: the store answered with one of ``answers``.
        StorageError: it refused.
        StoreAwayError: it did not answer in time.
    """
    bucket = place(uri)["Bucket"]
    patience = patience_s() if within_s is None else within_s
    if bucket in _contact.lost:
        patience = 0.0
    elif _contact.hasty and bucket not in _contact.reached:
        patience = min(patience, _FIRST_CONTACT_S)
    deadline_s = time.monotonic() + patience
    for attempt in count():
        try:
            answer = act(_client_for(uri, doing))
            _contact.answered(bucket)
            return answer
        except (boto_errors.BotoCoreError, boto_errors.ClientError, OSError) as error:
            if code(error) in answers:
                _contact.answered(bucket)
                raise
            wait_s = random.SystemRandom().uniform(
                0, min(_BACKOFF_S * 2 ** min(attempt, 10), _MAX_BACKOFF_S)
            )
            message = f"{uri}: cannot be {doing}: {reason(error)}."
            if not passes(error):
                raise StorageError(message) from None
            if time.monotonic() + wait_s > deadline_s:
                _contact.lost.add(bucket)
                raise StoreAwayError(message) from None
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _client_for(uri: str, doing: str) -> Any:
    try:
        return client()
    except boto_errors.BotoCoreError:
        raise
    except ValueError as error:  # an endpoint that is no URL
        raise StorageError(
            f"{uri}: cannot be {doing}: {error}. Write AWS_ENDPOINT_URL with http:// or https://."
        ) from None


def code(error: Exception) -> str:
    """The store's code for an error, empty where it did not answer."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def passes(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, boto_errors.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code(error) in _BUSY or status == 429 or (status >= 500 and status != 501)
    if isinstance(error, boto_errors.SSLError):
        return False
    transient = (
        boto_errors.HTTPClientError,
        boto_errors.ConnectionError,
        boto_errors.IncompleteReadError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, transient)


def reason(error: Exception) -> str:
    """What went wrong and how to mend it, without a full stop."""
    found = code(error)
    if isinstance(error, boto_errors.NoCredentialsError | boto_errors.PartialCredentialsError):
        return _NO_CREDENTIALS
    if found in _WRONG_REGION:
        return "the bucket lies in another region. Set AWS_REGION to its own"
    if found in _REASONS:
        return _REASONS[found]
    if isinstance(error, boto_errors.ClientError):
        return str(error).rstrip(".")
    if passes(error):
        return f"{_endpoint()} does not answer ({_short(error)}). Check AWS_ENDPOINT_URL, " + (
            "AWS_REGION and the network, then run the same command again"
        )
    return str(error).rstrip(".")


def _endpoint() -> str:
    try:
        return str(client().meta.endpoint_url)
    except boto_errors.BotoCoreError:
        return "the store"


def _short(error: Exception) -> str:
    names = {
        "EndpointConnectionError": "connection refused, or no such host",
        "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "no answer in time",
        "ConnectionClosedError": "connection closed",
    }
    return names.get(type(error).__name__, "connection broken")
