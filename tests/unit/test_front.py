"""HAProxy in front of replicas: what it says and refuses by itself."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ray_jobs.front import FrontConfig, front, haproxy

PROGRAM = haproxy()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="HAProxy is not installed")
REQUEST = b"GET /readyz HTTP/1.1\r\nHost: service\r\n\r\n"


@contextmanager
def running(folder: Path, certificate: Path | None = None) -> Iterator[tuple[str, int]]:
    """A front without replicas, in which a request must arrive within a second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = FrontConfig(port=port, certificate=str(certificate) if certificate else None)
    with front(str(PROGRAM), config, folder, slots=1, body_s=1, answer_s=1):
        yield "127.0.0.1", port


def answer(connection: socket.socket, data: bytes) -> tuple[bytes, dict[str, object]]:
    """Status line and problem document."""
    connection.settimeout(10)
    connection.sendall(data)
    received = b""
    while part := connection.recv(65536):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower()
    return head.splitlines()[0], json.loads(body)


def self_signed(path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "service")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(pem) + private)
    return path


def handshake(address: tuple[str, int], version: ssl.TLSVersion) -> tuple[bytes, dict[str, object]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # lets the client offer old versions at all
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(address, 10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        return answer(connection, REQUEST)


def test_without_a_replica_the_answer_is_a_problem(tmp_path: Path) -> None:
    with running(tmp_path) as address, socket.create_connection(address, 10) as connection:
        status, problem = answer(connection, REQUEST)
    assert status.startswith(b"HTTP/1.1 503 ")
    assert problem["type"] == "urn:fetal:problem:not-ready"


def test_clients_that_do_not_go_on_are_told_and_closed(tmp_path: Path) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: service\r\n"
    with running(tmp_path) as address:
        with socket.create_connection(address, 10) as connection:
            status, problem = answer(connection, head + b"Content-Length: 100\r\n\r\nhalf")
        with socket.create_connection(address, 10) as connection:
            connection.sendall(head)
            assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert status.startswith(b"HTTP/1.1 408 ")
    assert problem["type"] == "urn:fetal:problem:slow-body"


def test_what_is_not_http_is_refused(tmp_path: Path) -> None:
    """By a page of HAProxy's own, which it has compiled in."""
    with running(tmp_path) as address, socket.create_connection(address, 10) as connection:
        connection.sendall(b"\x00\x01\x02\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_tls_from_version_1_2(tmp_path: Path) -> None:
    with running(tmp_path, self_signed(tmp_path / "tls.pem")) as address:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert handshake(address, version)[0].startswith(b"HTTP/1.1 503 ")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(address, ssl.TLSVersion.TLSv1_1)


def test_its_own_control_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    with running(tmp_path):
        assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
