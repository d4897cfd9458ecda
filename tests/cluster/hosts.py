"""Machines of a network of their own, made of Linux namespaces on this one.

A host has its own network card, process table, host name, /tmp, /dev/shm and home; of the files of
this machine it can read all but write none. All hosts hang on a bridge in a namespace without a
name, so nothing is left behind, not even after ``kill -9``: a host ends with its process 1, which
ends when nobody holds its standard input any more.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "10.77.0"
SWITCH = f"{NETWORK}.254"
_NAMESPACES = ("net", "mount", "pid", "ipc", "uts")
# Bash reaps the processes that it inherits, as process 1 must.
_HOST = """
set -e
hostname {name}
for kept in {kept}; do
    mkdir -p {folder}/$kept
    mount --bind /tmp/$kept {folder}/$kept
    mount -o remount,bind,ro {folder}/$kept
done
mount -t tmpfs tmpfs /dev/shm
mount --rbind {folder} /tmp
mount -o remount,bind,ro /
ip link set lo up
echo ready
read -r
"""


def missing() -> str | None:
    """Why there can be no hosts here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "hosts are Linux namespaces, which need root"
    try:
        probe = ["unshare", "--net", "--mount", "ip", "link", "add", "br0", "type", "bridge"]
        subprocess.run(probe, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"{error.filename} is not installed (Debian: iproute2, util-linux)"
    except subprocess.CalledProcessError as error:
        return f"this machine does not allow network namespaces: {error.stderr.strip()}"
    return None


class Namespaces:
    """A set of namespaces and the process that keeps them."""

    def __init__(self, script: str, kinds: tuple[str, ...]) -> None:
        self._kinds = kinds
        unshare = ["unshare", *(f"--{kind}" for kind in kinds)]
        if "pid" in kinds:
            unshare += ["--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            [*unshare, "bash", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.alive = self._process.stdout.readline() == b"ready\n"
        if not self.alive:
            _, errors = self._process.communicate()
            raise RuntimeError(f"a host did not start: {errors.decode()}")
        self.pid = self._process.pid
        if "pid" in kinds:
            self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())

    def enter(self, *words: str) -> list[str]:
        """The command line that runs a command inside."""
        return ["nsenter", f"--target={self.pid}", *(f"--{k}" for k in self._kinds), "--", *words]

    def call(self, *words: str) -> None:
        """Run a command inside to its end."""
        subprocess.run(self.enter(*words), check=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread opens its sockets inside while the block lasts."""
        libc = ctypes.CDLL(None, use_errno=True)
        inside, home = Path(f"/proc/{self.pid}/ns/net"), Path("/proc/thread-self/ns/net")
        with home.open() as back, inside.open() as there:
            assert libc.setns(there.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(back.fileno(), 0) == 0

    def processes(self) -> list[str]:
        """The command lines of all processes inside."""
        last = f"ns/{'pid' if 'pid' in self._kinds else 'net'}"
        found, mine = [], Path(f"/proc/{self.pid}/{last}").readlink()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / last).readlink() == mine:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def kill(self) -> None:
        """End everything inside at once, as a power cut would."""
        self.alive = False
        if self._process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self._process.communicate()


class Host(Namespaces):
    """A machine of the network."""

    def __init__(self, number: int, folder: Path, environment: Mapping[str, str]) -> None:
        self.name, self.address = f"host{number}", f"{NETWORK}.{number}"
        self.folder = folder / self.name
        (self.folder / "home").mkdir(parents=True)
        places = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
        kept = sorted({str(p.relative_to("/tmp")) for p in places if p.is_relative_to("/tmp")})
        script = _HOST.format(
            name=self.name, folder=shlex.quote(str(self.folder)), kept=shlex.join(kept)
        )
        super().__init__(script, _NAMESPACES)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        self.call("mount", "--bind", "/tmp/hosts", "/etc/hosts")
        self.environment = {
            **environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/cluster")]),
            "HOME": "/tmp/home",
            "GLOO_SOCKET_IFNAME": "eth0",
        }

    @contextmanager
    def running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A command in the host's home, its output in a pipe; killed at the end of the block."""
        process = subprocess.Popen(
            self._at_home(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def daemon(self, name: str, *words: str) -> None:
        """A command in the background, its output in a file of this name."""
        with (self.folder / f"{name}.log").open("w") as log:
            subprocess.Popen(
                self._at_home(*words),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def run(self, *words: str, timeout_s: float = 400) -> tuple[int, str]:
        """Exit code and output of a command."""
        with self.running(*words) as process:
            output, _ = process.communicate(timeout=timeout_s)
        return process.returncode, output

    def _at_home(self, *words: str) -> list[str]:
        # It ends with the process outside that entered the host for it.
        return self.enter("setpriv", "--pdeathsig=KILL", "env", "-C", "/tmp/home", *words)


class Network:
    """A bridge and the hosts that hang on it."""

    def __init__(self, switch: Namespaces, folder: Path) -> None:
        self.switch, self.folder = switch, folder
        self.hosts: list[Host] = []

    def add(self, environment: Mapping[str, str]) -> Host:
        """One more host, connected."""
        number = len(self.hosts) + 1
        host = Host(number, self.folder, environment)
        self.hosts.append(host)
        port, card = f"port{number}", f"eth0 netns {host.pid}"
        for line in (
            f"link add {port} type veth peer name {card}",
            f"link set {port} master br0 up",
        ):
            self.switch.call("ip", *line.split())
        for line in (f"address add {host.address}/24 dev eth0", "link set eth0 up"):
            host.call("ip", *line.split())
        return host

    def unplug(self, host: Host) -> None:
        """Cut a host's cable: it goes on, but hears nobody."""
        self.switch.call("ip", "link", "set", f"port{host.name[4:]}", "down")


@contextmanager
def network() -> Iterator[Network]:
    """An empty network; with the block all its hosts end."""
    script = f"""
        set -e
        ip link set lo up
        # With an address of its own: else it takes the lowest of its ports', and when that port
        # comes or goes, the hosts send to one that is gone until their caches run out.
        ip link add br0 address 02:00:00:00:00:fe type bridge
        ip address add {SWITCH}/24 dev br0
        ip link set br0 up
        echo ready
        read -r
    """
    with tempfile.TemporaryDirectory(prefix="fetal-hosts-") as folder, ExitStack() as stack:
        switch = Namespaces(script, ("net",))
        stack.callback(switch.kill)
        found = Network(switch, Path(folder))
        try:
            yield found
        finally:
            for host in found.hosts:
                host.kill()
