"""The spot watcher against a metadata service on this machine."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from metadata_server import NOTICE, REBALANCE, FakeMetadata, metadata_server
from ray_jobs.command import stage
from ray_jobs.spot_metadata import TOKEN_TTL_S, MetadataError, MetadataService, SpotNotice
from ray_jobs.spot_watcher import DrainError, Machine, Watcher

NOW = datetime(2026, 3, 1, 8, 20, tzinfo=UTC)
TERMINATE = json.dumps({"action": "terminate", "time": "2026-03-01T08:22:00Z"})


@pytest.fixture
def server() -> Iterator[FakeMetadata]:
    with metadata_server() as found:
        yield found


@pytest.fixture
def metadata(server: FakeMetadata) -> MetadataService:
    return MetadataService(server.url, timeout_s=0.3)


class Rounds:
    """Stands for the watcher's pauses; does something in each, and fails after the last."""

    def __init__(self, *actions: Callable[[], object]) -> None:
        self.actions = list(actions)
        self.pauses_s: list[float] = []

    def __call__(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        if not self.actions:
            pytest.fail("the watcher did not come to an end")
        self.actions.pop(0)()


class Drains:
    """Stands for Ray; refuses a few times first."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.asked: list[tuple[Machine, SpotNotice]] = []

    def __call__(self, machine: Machine, notice: SpotNotice) -> list[str]:
        self.asked.append((machine, notice))
        if len(self.asked) <= self.refusals:
            raise DrainError("Ray does not answer")
        return ["ab12"]


def give_notice(server: FakeMetadata, text: str = TERMINATE) -> Callable[[], None]:
    return lambda: server.values.update({NOTICE: text})


def nothing() -> None:
    pass


def test_the_node_is_drained_once_the_notice_is_there(
    server: FakeMetadata, metadata: MetadataService
) -> None:
    drains, rounds = Drains(), Rounds(nothing, nothing, give_notice(server))
    notice, nodes = Watcher(metadata, drains, 1.5, rounds).run()
    assert nodes == ["ab12"]
    assert notice == SpotNotice("terminate", datetime(2026, 3, 1, 8, 22, tzinfo=UTC))
    assert drains.asked == [(Machine("i-0fe7a1", "127.0.0.1"), notice)]
    assert rounds.pauses_s == [1.5, 1.5, 1.5]


def test_one_token_serves_all_questions_and_asks_for_the_longest_life(
    server: FakeMetadata, metadata: MetadataService
) -> None:
    Watcher(metadata, Drains(), 1, Rounds(nothing, nothing, give_notice(server))).run()
    assert server.ttls_s == [TOKEN_TTL_S]


@pytest.mark.parametrize("fault", [500, 503, 429, "hang", "hang up"])
@pytest.mark.parametrize("path", ["token", "instance-id", NOTICE, REBALANCE])
def test_a_service_that_fails_for_a_while_is_outlasted(
    server: FakeMetadata, metadata: MetadataService, path: str, fault: int | str
) -> None:
    server.faults[path] = [fault, fault]
    rounds = Rounds(nothing, nothing, give_notice(server), nothing, nothing)
    drains = Drains()
    Watcher(metadata, drains, 1, rounds).run()
    assert server.faults[path] == []
    assert len(drains.asked) == 1


def test_a_service_that_is_not_there_yet_is_waited_for(
    server: FakeMetadata, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    late = MetadataService(f"http://127.0.0.1:{port}", timeout_s=0.3)
    rounds = Rounds(nothing, lambda: setattr(late, "_url", server.url), give_notice(server))
    with caplog.at_level(logging.INFO, "ray_jobs"):
        Watcher(late, Drains(), 1, rounds).run()
    told = [record.message for record in caplog.records]
    assert sum("trying again" in line for line in told) == 1
    assert "all answers again" in told


def test_a_refused_token_is_renewed_at_once(
    server: FakeMetadata, metadata: MetadataService
) -> None:
    assert metadata.get("instance-id") == "i-0fe7a1"
    server.revoke_tokens()
    assert metadata.get("instance-id") == "i-0fe7a1"
    assert len(server.ttls_s) == 2


def test_a_service_that_refuses_every_token_is_an_error_not_a_loop(
    server: FakeMetadata, metadata: MetadataService
) -> None:
    server.token_life_s = 0
    with pytest.raises(MetadataError, match="401"):
        metadata.get("instance-id")
    assert len(server.ttls_s) == 2


def test_questions_do_not_go_through_a_proxy(
    server: FakeMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert MetadataService(server.url).get("local-ipv4") == "127.0.0.1"


@pytest.mark.parametrize("text", ["", "soon", "[]", "{}", '{"action": "stop", "time": "soon"}'])
def test_a_notice_that_cannot_be_read_counts_with_two_minutes(
    server: FakeMetadata, metadata: MetadataService, text: str
) -> None:
    server.values[NOTICE] = text
    notice = metadata.spot_notice(NOW)
    assert notice is not None
    assert notice.remaining_s(NOW) == 120


@pytest.mark.parametrize(
    ("text", "left_s"),
    [
        ("2026-03-01T08:22:00Z", 120),
        ("2026-03-01T08:22:00", 120),
        ("2026-03-01T09:20:30+01:00", 30),
        ("2026-03-01T08:00:00Z", 0),
    ],
)
def test_the_time_left_is_read_from_the_notice(
    server: FakeMetadata, metadata: MetadataService, text: str, left_s: int
) -> None:
    server.values[NOTICE] = json.dumps({"action": "hibernate", "time": text})
    notice = metadata.spot_notice(NOW)
    assert notice is not None
    assert (notice.action, notice.remaining_s(NOW)) == ("hibernate", left_s)


def test_no_notice_is_no_error(metadata: MetadataService) -> None:
    assert metadata.spot_notice(NOW) is None
    assert metadata.rebalance_time() is None


def test_ray_is_asked_again_until_it_drains_with_the_notice_seen_first(
    server: FakeMetadata, metadata: MetadataService
) -> None:
    server.values[NOTICE] = TERMINATE
    drains = Drains(refusals=2)
    forget = [lambda: server.values.pop(NOTICE), nothing]
    notice, _ = Watcher(metadata, drains, 1, Rounds(*forget)).run()
    assert [asked for _, asked in drains.asked] == [notice] * 3


def test_a_risk_is_told_once_and_drains_nothing(
    server: FakeMetadata, metadata: MetadataService, caplog: pytest.LogCaptureFixture
) -> None:
    server.values[REBALANCE] = json.dumps({"noticeTime": "2026-03-01T08:10:00Z"})
    drains = Drains()
    Watcher(metadata, drains, 1, Rounds(nothing, nothing, give_notice(server))).run()
    told = [r.message for r in caplog.records if "elevated risk" in r.message]
    assert told == ["EC2 sees an elevated risk of interruption since 2026-03-01T08:10:00Z"]
    assert len(drains.asked) == 1


def test_time_left_is_whole_seconds_and_never_negative() -> None:
    notice = SpotNotice("stop", NOW)
    assert notice.remaining_s(NOW - timedelta(seconds=1.9)) == 1
    assert notice.remaining_s(NOW + timedelta(hours=1)) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--address", "127.0.0.1:1", "--poll-s", "0"], "--poll-s 0: give at least 0.1"),
        (["--address", "127.0.0.1:1", "--poll-s", "nan"], "--poll-s nan: give at least 0.1"),
        (["--address", "127.0.0.1:1", "--pol-s", "1"], "--pol-s"),
        ([], "--address"),
    ],
)
def test_wrong_flags_are_told_at_once(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(stage("spot_watcher", words))
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert told in printed.out + printed.err
