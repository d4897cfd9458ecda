"""Ray pods as processes: what their manifests allow them, and no more, without a container engine.

A pod gets a network, a process tree and a view of the files of its own. In that view everything is
read-only but the volumes that the manifest mounts, and its processes have the manifest's user, no
capabilities and no way to gain them. Linux and root are needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from manifests import ROOT, RayPods, size

TOKEN = "a-token-of-the-tests-alone-0123456789abcdef"
PROGRAMS = ("ip", "nsenter", "setpriv", "unshare")
_IMAGE = "/mnt"  # holds what must stay visible under the volumes
_START_S = 120
_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc")
_RIGHTS = "--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"


def missing() -> str:
    """What keeps pods from being run here; empty if nothing does."""
    if os.geteuid() != 0:
        return "only root may make namespaces"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    # In some sandboxes root owns its namespace alone, where no other user has a number.
    probe = f"mount -t tmpfs -o gid=1000 tmpfs {_IMAGE} && setpriv --reuid=1000 {_RIGHTS} true"
    result = subprocess.run(
        [*_UNSHARE, "/bin/sh", "-c", probe], capture_output=True, text=True, check=False
    )
    return f"this machine refuses: {result.stderr.strip()}" if result.returncode else ""


@dataclass(frozen=True)
class Network:
    """A pod's network namespace and its address in it."""

    name: str
    address: str


@contextmanager
def two_networks() -> Iterator[tuple[Network, Network]]:
    """Two hosts joined by a cable."""
    first = Network(f"fetal-pod-{os.getpid()}-a", "10.213.7.1")
    second = Network(f"fetal-pod-{os.getpid()}-b", "10.213.7.2")
    try:
        for one in (first, second):
            _ip("netns", "add", one.name)
        cable = ["type", "veth", "peer", "name", "eth0", "netns", second.name]
        _ip("-n", first.name, "link", "add", "eth0", *cable)
        for one, other in ((first, second), (second, first)):
            _ip("-n", one.name, "address", "add", f"{one.address}/24", "dev", "eth0")
            _ip("-n", one.name, "link", "set", "eth0", "up")
            _ip("-n", one.name, "link", "set", "lo", "up")
            _ip("-n", one.name, "route", "add", "default", "via", other.address)
        yield first, second
    finally:
        for one in (first, second):
            subprocess.run(["ip", "netns", "delete", one.name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def once(pods: RayPods, *words: str) -> subprocess.CompletedProcess[str]:
    """A command alone in a pod without a network."""
    environment = _environment(pods, Network("", "127.0.0.1"))
    command = shlex.join([*_user(pods), *_with(environment), "timeout", "50", *words])
    inside = f"{_view(pods)}\nexec {command}"
    return subprocess.run(
        [*_UNSHARE, "/bin/bash", "-ec", inside],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Pod:
    """A Ray pod that runs.

    Attributes:
        network: where it listens.
        log: what its processes print.
    """

    def __init__(self, pods: RayPods, network: Network, head: Network, log: Path) -> None:
        self.network, self.log = network, log
        self._enter = shlex.join([*_user(pods), *_with(_environment(pods, head))])
        inside = f"{_view(pods)}\nexec {self._enter} {_start(pods, head)}"
        namespaces = [word for word in _UNSHARE if word != "--net"]
        words = ["ip", "netns", "exec", network.name, *namespaces, "/bin/bash", "-ec", inside]
        with log.open("w") as file:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def run(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command in the pod, as ``kubectl exec`` runs one."""
        command = f"cd /home/fetal && exec {self._enter} "
        enter = ["nsenter", "--target", str(self._first()), "--mount", "--pid", "--net"]
        return subprocess.run(
            [*enter, "/bin/bash", "-c", command + shlex.join(words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def ask(self, port: int, path: str, token: str | None = None) -> int:
        """Status of an answer to a request from another machine; 0 where nothing answers."""
        code = (
            "import sys, urllib.error, urllib.request as u\n"
            "head = {'Authorization': 'Bearer ' + sys.argv[2]} if sys.argv[2] else {}\n"
            "try: print(u.urlopen(u.Request(sys.argv[1], headers=head), timeout=5).status)\n"
            "except urllib.error.HTTPError as error: print(error.code)\n"
            "except OSError: print(0)\n"
        )
        url = f"http://{self.network.address}:{port}{path}"
        result = subprocess.run(
            [
                "ip",
                "netns",
                "exec",
                self.network.name,
                sys.executable,
                "-c",
                code,
                url,
                token or "",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return int(result.stdout)

    def wait_for(self, port: int, path: str) -> None:
        """Until a probe is answered.

        Raises:
            TimeoutError: it is not, or the pod has ended.
        """
        deadline_s = time.monotonic() + _START_S
        while self.ask(port, path) != 200:
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise TimeoutError(f"{path} at {port}:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)

    def terminate(self) -> None:
        """Tell its first process to end, as Kubernetes does."""
        os.kill(self._first(), signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Until it has ended.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        self._process.wait(timeout_s)

    def kill(self) -> None:
        """End all its processes at once: those of a namespace end with its first."""
        with suppress(ProcessLookupError, FileNotFoundError, TimeoutError):
            os.kill(self._first(), signal.SIGKILL)
        self._process.kill()
        self._process.wait(30)

    def _first(self) -> int:
        """The process that is number 1 in the pod."""
        deadline_s = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline_s:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            if found := children.read_text().split():
                return int(found[0])
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())


def _user(pods: RayPods) -> list[str]:
    security = pods.spec["securityContext"]
    words = ["setpriv", f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}"]
    return [*words, *_RIGHTS.split()]


def _with(environment: dict[str, str]) -> list[str]:
    return ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]


def _environment(pods: RayPods, head: Network) -> dict[str, str]:
    """That of the image, of the manifest, and what KubeRay adds to both."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text("utf-8").replace("\\\n", " ")
    image = dict(
        pair.split("=", 1)
        for line in re.findall(r"^ENV (.*)$", dockerfile, re.MULTILINE)
        for pair in shlex.split(line)
    )
    own = {one["name"]: one["value"] for one in pods.container["env"]}
    kuberay = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ADDRESS": f"{head.address}:6379",
    }
    here = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return image | own | kuberay | here | {"OMP_NUM_THREADS": "1"}


def _start(pods: RayPods, head: Network) -> str:
    """The command that KubeRay makes of ``rayStartParams``."""
    params = pods.params | {"block": "true", "dashboard-agent-listen-port": "52365"}
    params |= {"no-monitor": "true"} if pods.role == "head" else {"address": f"{head.address}:6379"}
    flags = [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in params.items()]
    words = ["ray", "start", *(["--head"] if pods.role == "head" else []), *flags]
    return shlex.join(["/bin/bash", "-c", f"ulimit -n 65536; {shlex.join(words)}"])


def _view(pods: RayPods) -> str:
    """Shell commands that lay out the pod's files."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    lines = [f"mount -t tmpfs tmpfs {_IMAGE}"]
    for number, path in enumerate(needed):
        lines += [f"mkdir {_IMAGE}/{number}", f"mount --bind {path} {_IMAGE}/{number}"]
    # The image has the home and the user of the Dockerfile.
    lines += ["mount -t tmpfs -o mode=755 tmpfs /home", "mkdir /home/fetal"]
    lines += [f"sed '/:1000:/d' /etc/passwd > {_IMAGE}/passwd"]
    lines += [f"echo fetal:x:1000:1000::/home/fetal:/bin/bash >> {_IMAGE}/passwd"]
    lines += [f"mount --bind {_IMAGE}/passwd /etc/passwd"]
    lines += ["mount -t tmpfs -o mode=755 tmpfs /root"]
    sizes = {one["name"]: one["emptyDir"]["sizeLimit"] for one in pods.spec["volumes"]}
    mounts = sorted(pods.container["volumeMounts"], key=lambda one: str(one["mountPath"]))
    for one in mounts:
        limit = int(size(sizes[one["name"]]))
        options = f"mode=2777,gid={pods.spec['securityContext']['fsGroup']},size={limit}"
        lines += [f"mkdir -p {one['mountPath']}"]
        lines += [f"mount -t tmpfs -o {options} tmpfs {one['mountPath']}"]
    for number, path in enumerate(needed):
        lines += [f"mkdir -p {path}", f"mount --rbind {_IMAGE}/{number} {path}"]
    written = "|".join(re.escape(one["mountPath"]) for one in mounts)
    lines += [
        "cd /",
        "awk '{print $5}' /proc/self/mountinfo | sort -u"
        f" | grep -vxE '({written}|/proc(/.*)?|/sys(/.*)?|/dev(/.*)?)'"
        ' | while read -r place; do if mountpoint -q "$place"; then'  # others are covered
        ' mount -o remount,bind,ro "$place" || echo "$place can be written" >&2; fi; done',
        "cd /home/fetal",
    ]
    return "\n".join(lines)
