"""Load from wrk, and its figures."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_BOUNDARY = "fetalbenchboundary"

_SCRIPT = """
local files = {%(files)s}
local requests, turn = {}, 0
function init(args)
  for number, path in ipairs(files) do
    local file = io.open(path, "rb")
    local headers = {["Content-Type"] = "%(type)s"}
    requests[number] = wrk.format("POST", "%(path)s", headers, file:read("*a"))
    file:close()
  end
end
function request()
  turn = turn %% #requests + 1
  return requests[turn]
end
%(delay)s
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    'FIGURES {"requests": %%d, "duration_us": %%d, "p50_us": %%d, "p99_us": %%d, "errors": %%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Figures:
    """What wrk saw."""

    rate_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


def bodies(images: Sequence[Path], folder: Path, multipart: bool) -> tuple[list[Path], str]:
    """Files with the bodies of requests, and their content type."""
    if not multipart:
        return list(images), "image/png"
    written = []
    for number, image in enumerate(images):
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
            'filename="image.png"\r\nContent-Type: image/png\r\n\r\n'
        )
        path = folder / f"{number}.multipart"
        path.write_bytes(head.encode() + image.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode())
        written.append(path)
    return written, f"multipart/form-data; boundary={_BOUNDARY}"


def post(
    url: str,
    files: Sequence[Path],
    media_type: str,
    folder: Path,
    connections: int,
    seconds: float,
    pause_ms: int = 0,
) -> Figures:
    """Post the files in turn, each connection one after another.

    Args:
        pause_ms: of a connection before each request; its answer times leave it out.
    """
    path = "/" + url.split("/", 3)[3]
    script = folder / "post.lua"
    script.write_text(
        _SCRIPT
        % {
            "files": ", ".join(f'"{file}"' for file in files),
            "path": path,
            "type": media_type,
            "delay": f"function delay() return {pause_ms} end" if pause_ms else "",
        }
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s"]
    run = subprocess.run(
        [*command, "-s", str(script), url], capture_output=True, text=True, check=True
    )
    line = next(line for line in run.stdout.splitlines() if line.startswith("FIGURES "))
    found = json.loads(line.removeprefix("FIGURES "))
    return Figures(
        rate_per_s=found["requests"] / (found["duration_us"] / 1e6),
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        errors=found["errors"],
    )


def wait_for(url: str, data: bytes, media_type: str, timeout_s: float = 120) -> None:
    """Until the first answer of status 200."""
    deadline_s = time.monotonic() + timeout_s
    request = urllib.request.Request(url, data, {"Content-Type": media_type})
    while True:
        try:
            urllib.request.urlopen(request, timeout=30).close()
            return
        except (urllib.error.URLError, ConnectionError) as error:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{url} does not answer: {error}") from error
            time.sleep(0.2)
