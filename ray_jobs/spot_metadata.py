"""The metadata service of an EC2 instance (IMDSv2), and what it says of an interruption."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

URL = "http://169.254.169.254"
TOKEN_TTL_S = 21_600
WARNING_S = 120
_TIMEOUT_S = 2.0
_MAX_BYTES = 65_536


class MetadataError(Exception):
    """The service did not answer, or not as it should; asking again may help."""


@dataclass(frozen=True)
class SpotNotice:
    """EC2 is about to take the instance.

    Attributes:
        action: ``terminate``, ``stop`` or ``hibernate``.
        deadline: when, in UTC.
    """

    action: str
    deadline: datetime

    def remaining_s(self, now: datetime) -> int:
        """Whole seconds left, never negative."""
        return max(0, int((self.deadline - now).total_seconds()))


class MetadataService:
    """Reads metadata with a session token that is renewed when it has aged or is refused."""

    def __init__(self, url: str = URL, timeout_s: float = _TIMEOUT_S) -> None:
        """Nothing is asked yet."""
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._token = ""
        self._renew_at_s = 0.0
        # Neither tokens nor questions may go to a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> str | None:
        """The text of ``/latest/meta-data/PATH``; None where there is none.

        Raises:
            MetadataError: no answer, or an unexpected one.
        """
        if time.monotonic() >= self._renew_at_s:
            self._renew()
        status, text = self._get(path)
        if status == 401:
            self._renew()
            status, text = self._get(path)
        if status == 404:
            return None
        if status != 200:
            raise MetadataError(f"{path}: status {status}")
        return text

    def spot_notice(self, now: datetime) -> SpotNotice | None:
        """The interruption notice; None as long as there is none.

        Raises:
            MetadataError: no answer, or an unexpected one.
        """
        text = self.get("spot/instance-action")
        return None if text is None else _parse_notice(text, now)

    def rebalance_time(self) -> str | None:
        """When EC2 saw an elevated risk of interruption; None as long as it did not.

        Raises:
            MetadataError: no answer, or an unexpected one.
        """
        text = self.get("events/recommendations/rebalance")
        return None if text is None else str(_fields(text).get("noticeTime", "at an unknown time"))

    def _get(self, path: str) -> tuple[int, str]:
        headers = {"X-aws-ec2-metadata-token": self._token}
        return self._ask(f"/latest/meta-data/{path}", "GET", headers)

    def _renew(self) -> None:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
        status, token = self._ask("/latest/api/token", "PUT", headers)
        if status != 200:
            raise MetadataError(f"session token: status {status}")
        self._token = token
        self._renew_at_s = time.monotonic() + TOKEN_TTL_S / 2

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> tuple[int, str]:
        request = urllib.request.Request(self._url + path, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                return answer.status, answer.read(_MAX_BYTES).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""
        except (OSError, http.client.HTTPException) as error:
            raise MetadataError(f"{path}: {error or type(error).__name__}") from None


def _parse_notice(text: str, now: datetime) -> SpotNotice:
    """A notice that cannot be understood still is one: then EC2's usual two minutes are left."""
    fields = _fields(text)
    try:
        deadline = datetime.fromisoformat(str(fields.get("time")))
    except ValueError:
        deadline = now + timedelta(seconds=WARNING_S)
    if deadline.tzinfo is None:
        deadline = deadline.replace(tzinfo=UTC)
    return SpotNotice(str(fields.get("action", "unknown")), deadline)


def _fields(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
