"""HAProxy and the replicas' sockets: nothing is lost when a replica ends, however it ends."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ray_jobs.cluster import ResourceError
from ray_jobs.front import REPLAYED_BYTES, FrontConfig, check, free_port, front, haproxy

PROGRAM = haproxy()
pytestmark = pytest.mark.needs(PROGRAM, "HAProxy is not installed")
REPLICA = Path(__file__).with_name("replica_process.py")


@contextmanager
def replica(folder: Path, slots: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, str(REPLICA), str(folder), str(slots)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


@contextmanager
def standing(
    folder: Path,
    slots: int,
    body_s: float = 10,
    certificate: Path | None = None,
    host: str = "127.0.0.1",
) -> Iterator[FrontConfig]:
    config = FrontConfig(
        host=host,
        port=free_port(),
        certificate=str(certificate) if certificate is not None else None,
    )
    assert PROGRAM is not None
    with front(PROGRAM, config, folder, slots, body_s, answer_s=10):
        yield config


def test_it_is_started_again_when_it_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert PROGRAM is not None
    config = FrontConfig(port=free_port())
    with replica(tmp_path, 1), front(PROGRAM, config, tmp_path, 1, 10, 10) as kept:
        for _ in range(2):
            killed = kept.process
            killed.kill()
            until = time.monotonic() + 20
            while kept.process is killed or answer_or_none(config) != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
        last = kept.process
    assert last.poll() is not None
    assert caplog.text.count("starting it again") == 2


def answer_or_none(config: FrontConfig) -> int | None:
    try:
        return ask(config)[0]
    except OSError:
        return None


def ask(config: FrontConfig, body: bytes = b"x", host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host or config.host, config.port, timeout=30)
    try:
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_no_request_is_lost_when_replicas_are_killed(tmp_path: Path) -> None:
    body, answers, stop = os.urandom(300_000), list[tuple[int, bytes]](), threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(ask(config, body))

    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(tmp_path, 3)) for _ in range(2)]
        config = stack.enter_context(standing(tmp_path, 3))
        clients = [threading.Thread(target=client) for _ in range(4)]
        for each in clients:
            each.start()
        for round_number in range(4):
            time.sleep(0.5)
            replicas[round_number].send_signal(signal.SIGKILL)
            replicas.append(stack.enter_context(replica(tmp_path, 3)))
        time.sleep(0.5)
        stop.set()
        for each in clients:
            each.join()
    assert {status for status, _ in answers} == {200}
    assert {int(text.split()[1]) for _, text in answers} == {len(body)}
    assert len({text.split()[0] for _, text in answers}) >= 4


def test_no_request_is_lost_when_a_replica_ends_in_order(tmp_path: Path) -> None:
    answers, stop = list[int](), threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(ask(config)[0])

    with replica(tmp_path, 2), standing(tmp_path, 2) as config:
        with replica(tmp_path, 2):
            clients = [threading.Thread(target=client) for _ in range(3)]
            for each in clients:
                each.start()
            time.sleep(0.7)
        time.sleep(0.7)
        stop.set()
        for each in clients:
            each.join()
    assert set(answers) == {200}


def test_without_replicas_the_answer_is_a_problem_document(tmp_path: Path) -> None:
    with standing(tmp_path, 2) as config:
        status, body = ask(config)
    assert status == 503
    assert json.loads(body)["type"] == "urn:fetal:problem:not-ready"


def test_bodies_beyond_the_buffer_pass_too(tmp_path: Path) -> None:
    with replica(tmp_path, 1), standing(tmp_path, 1) as config:
        status, body = ask(config, bytes(5 * REPLAYED_BYTES))
    assert (status, int(body.split()[1])) == (200, 5 * REPLAYED_BYTES)


def test_a_client_that_never_ends_its_request_is_cut_off(tmp_path: Path) -> None:
    with replica(tmp_path, 1), standing(tmp_path, 1, body_s=1) as config:
        with socket.create_connection((config.host, config.port), timeout=20) as slow:
            slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nab")
            answer = slow.recv(4096)
        assert ask(config)[0] == 200
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"urn:fetal:problem:slow-body" in answer


def test_connections_beyond_the_limit_wait(tmp_path: Path) -> None:
    assert PROGRAM is not None
    config = FrontConfig(port=free_port(), connections=2)
    with replica(tmp_path, 1), front(PROGRAM, config, tmp_path, 1, 10, 10):
        address = config.host, config.port
        held = [socket.create_connection(address, timeout=20) for _ in range(2)]
        for each in held:
            each.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        time.sleep(0.3)
        with socket.create_connection(address, timeout=20) as third:
            third.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            third.settimeout(0.5)
            with pytest.raises(TimeoutError):
                third.recv(100)
            held[0].close()
            third.settimeout(20)
            assert third.recv(100).startswith(b"HTTP/1.1 200")
        held[1].close()


def test_what_is_not_http_is_refused(tmp_path: Path) -> None:
    with (
        replica(tmp_path, 1),
        standing(tmp_path, 1) as config,
        socket.create_connection((config.host, config.port), timeout=20) as client,
    ):
        client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 400")


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, with its key, as one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def ask_by_tls(config: FrontConfig, trusted: Path) -> bytes:
    """The answer to a body of three bytes."""
    trusting = ssl.create_default_context(cafile=str(trusted))
    trusting.check_hostname = False
    connection = http.client.HTTPSConnection(config.host, config.port, context=trusting)
    try:
        connection.request("POST", "/", b"abc")
        return connection.getresponse().read()
    finally:
        connection.close()


def test_tls_from_version_1_2_on(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with replica(tmp_path, 1), standing(tmp_path, 1, certificate=pem) as config:
        assert config.url.startswith("https://")
        assert ask_by_tls(config, pem).endswith(b" 3")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection((config.host, config.port)) as plain,
            pytest.raises(ssl.SSLError),
        ):
            old.wrap_socket(plain)


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("::1", {"::1"}),
        ("::", {"127.0.0.1", "::1"}),
    ],
)
def test_it_listens_where_it_is_asked_to(tmp_path: Path, host: str, reached: set[str]) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    found = set()
    with replica(tmp_path, 1), standing(tmp_path, 1, host=host) as config:
        for address in ("127.0.0.1", "::1"):
            with suppress(OSError):
                assert ask(config, host=address)[0] == 200
                found.add(address)
    assert found == reached


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_port_that_one_family_has_taken_is_told_at_once() -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("0.0.0.0", 0)) as taken:
        config = FrontConfig(host="::", port=taken.getsockname()[1])
        with pytest.raises(ResourceError, match="cannot listen there"):
            check(config)


def test_two_services_do_not_share_a_port(tmp_path: Path) -> None:
    assert PROGRAM is not None
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    config = FrontConfig(port=free_port())
    with (
        front(PROGRAM, config, folders[0], 1, 1, 1),
        pytest.raises(ResourceError, match=r"cannot listen there.*in use"),
        front(PROGRAM, config, folders[1], 1, 1, 1),
    ):
        pytest.fail("two services listen on one port")


@pytest.mark.parametrize("tls", [False, True])
def test_http_2_is_refused_though_its_client_knows_that_it_is_spoken(
    tmp_path: Path, tls: bool
) -> None:
    pem = certificate(tmp_path) if tls else None
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    empty_settings = bytes(3) + b"\x04" + bytes(5)
    with (
        replica(tmp_path, 1),
        standing(tmp_path, 1, certificate=pem) as config,
        ExitStack() as stack,
    ):
        client = stack.enter_context(
            socket.create_connection((config.host, config.port), timeout=20)
        )
        if pem is not None:
            trusting = ssl.create_default_context(cafile=str(pem))
            trusting.check_hostname = False
            client = stack.enter_context(trusting.wrap_socket(client))
        client.sendall(preface + empty_settings)
        answer = b""
        while received := client.recv(4096):
            answer += received
    assert answer.startswith(b"HTTP/1.1 400")


def test_paths_may_hold_spaces_and_quotes() -> None:
    # Not in pytest's folders: the system allows sockets' paths 97 characters.
    with tempfile.TemporaryDirectory(prefix='it\'s "my" place #1 ') as name:
        folder = Path(name)
        pem = certificate(folder)
        with replica(folder, 1), standing(folder, 1, certificate=pem) as config:
            assert ask_by_tls(config, pem).endswith(b" 3")


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    assert PROGRAM is not None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = FrontConfig(port=taken.getsockname()[1])
        with (
            pytest.raises(ResourceError, match=r"cannot listen there.*in use"),
            front(PROGRAM, config, tmp_path, 1, 1, 1),
        ):
            pytest.fail("it listens on a port that is taken")


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("not a certificate")
    with (
        pytest.raises(ResourceError, match=r"wrong\.pem"),
        standing(tmp_path, 1, certificate=wrong),
    ):
        pytest.fail("it listens without a certificate")


def test_the_sockets_are_for_this_user_alone(tmp_path: Path) -> None:
    with replica(tmp_path, 1), standing(tmp_path, 1):
        modes = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.glob("*.sock")}
    assert modes == {"0.sock": 0, "admin.sock": 0}
