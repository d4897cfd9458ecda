"""What importing the packages does to a process, seen from a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

IMPORT_ALL = """
import json, logging, os, pkgutil, random, sys, threading
from importlib import import_module

import numpy, torch
import torchvision  # sets TORCHINDUCTOR_CACHE_DIR

def state():
    return {
        "environment": dict(os.environ),
        "log handlers": [repr(handler) for handler in logging.getLogger().handlers],
        "log level": logging.getLogger().level,
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "random": str(random.getstate()),
        "numpy random": str(numpy.random.get_state()),
        "torch random": torch.get_rng_state().tolist(),
    }

before = state()
package = import_module("fetal_core")
names = [found.name for found in pkgutil.walk_packages(package.__path__, "fetal_core.")]
for name in names:
    import_module(name)
after = state()
print(json.dumps({
    "imported": names,
    "changed": [key for key in before if before[key] != after[key]],
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
}))
"""


def run_python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_importing_the_core_has_no_side_effects(tmp_path: Path) -> None:
    done = run_python("-c", IMPORT_ALL, cwd=tmp_path)
    found = json.loads(done.stdout)
    assert "fetal_core.train" in found["imported"]
    assert "fetal_core.phantom.physics" in found["imported"]
    assert not {"ray", "ray_jobs", "fastapi", "mlflow"} & set(found["modules"])
    assert found["changed"] == []
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_help_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("fetal"))
    done = run_python("-X", "importtime", command, "--help", cwd=tmp_path)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines(done.stderr)}
    assert done.stdout.startswith("usage: fetal COMMAND")
    assert "ray_jobs" in imported
    assert not {"torch", "ray", "numpy", "pyarrow", "fetal_core"} & imported


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("import time:")]
