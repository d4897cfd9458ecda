"""Commands of README.md and the runbook: those that can run here do, in order, as they stand.

A new command in a `sh` block is run by the next test run. One that is too expensive is named in
``ELSEWHERE_TESTED`` with the test that covers it; a block that needs what is not here says so by a
word after `sh` (``shell_blocks.ELSEWHERE``).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from builders import toy_bundle
from cohorts import kill, png, write_textures
from fetal_core import storage
from fetal_core.bundle import read_info, write_info
from job_server import job_server
from ray_jobs.cli import COMMANDS
from ray_jobs.command import stage
from ray_jobs.front import free_port
from required import lack
from s3_servers import s3_server
from serving_samples import cine
from shell_blocks import ELSEWHERE, Block, Workplace, blocks, fetal_words

ROOT = Path(__file__).resolve().parents[2]
README, RUNBOOK = ROOT / "README.md", ROOT / "deploy/RUNBOOK.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("deploy/**/*.md"))]

# What is too long or too large to be run as it stands: how it begins, and the test that runs it on
# fewer images, or for fewer epochs.
ELSEWHERE_TESTED = {
    "make demo": "tests/jobs/test_demo_job.py::test_demo_names_the_planes_of_patients_it_has",
    "make test": ".ci/run",
    "make check": ".ci/run",
    "fetal run": "tests/jobs/test_original_job.py::test_original_recipe_runs_at_661_px",
    "fetal prepare": "tests/jobs/test_s3_job.py::test_every_stage_runs_in_a_bucket",
    "fetal train": "tests/jobs/test_train_job.py::test_a_killed_run_resumes_to_the_same_numbers",
    "fetal evaluate": "tests/jobs/test_s3_job.py::test_every_stage_runs_in_a_bucket",
    "fetal tune best": "tests/jobs/test_tune_job.py::test_the_command_writes_the_best_bundle",
    "fetal tune --resume": "tests/jobs/test_tune_resume_job.py::test_a_killed_sweep_goes_on",
    "fetal tune": "tests/jobs/test_s3_job.py::test_every_stage_runs_in_a_bucket",
    "fetal crossval": "tests/jobs/test_crossval_job.py::test_probe_on_real_images_equals",
    "fetal phantom twin": "tests/jobs/test_commands.py::test_a_cohort_has_an_image_for_each_row",
}


# What makes README's commands of a cluster short enough, in their order.
SHORTENED = {
    "fetal submit prepare": "--preprocess.size-px 32 --model.architecture resnet18"
    " --model.weights none --schedule.warmup-epochs 1 --train.epochs 2 --train.batch-size 44"
    " --train.micro-batch 11",
    "fetal submit train": "",
    "fetal jobs list": "",
    "fetal doctor": "|| test $? = 1",  # what it finds is this machine's
}


def here(document: Path) -> list[Block]:
    return [block for block in blocks(document) if not block.marks & ELSEWHERE]


def plain(command: str) -> str:
    return command.removeprefix(".venv/bin/")


def covering(command: str) -> str | None:
    """The beginning in the table that fits a command best."""
    fitting = [start for start in ELSEWHERE_TESTED if f"{plain(command)} ".startswith(f"{start} ")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_are_valid_shell_with_known_marks(document: Path) -> None:
    for block in blocks(document):
        assert block.marks <= ELSEWHERE, f"{document.name}, line {block.line}: {block.marks}"
        done = subprocess.run(
            ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{document.name}, line {block.line}: {done.stderr}"


@cache
def known_flags(*words: str) -> frozenset[str]:
    """Flags that the help of a command names; none where there is no such command."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        stage(words[0], [*words[1:], "--help"])
    return frozenset(re.findall(r"--[a-z0-9][\w.-]*", said.getvalue()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_flags_exist(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for block in blocks(document):
        for command in block.commands:
            for words in fetal_words(command):
                where = f"{document.name}, line {block.line}: fetal {' '.join(words)}"
                name = words[0] if words else ""
                if name.startswith("-"):
                    continue
                assert name in COMMANDS or name.isupper(), where
                # An action of the command, or the stage that it submits, has flags of its own.
                paths = [(name,), *((name, word) for word in words[1:2] if word.isalpha())]
                paths += [(word,) for word in words[1:] if word in COMMANDS]
                known = frozenset().union(*(known_flags(*path) for path in paths if path[0]))
                for word in words[1:]:
                    if word.startswith("--") and not name.isupper():
                        flag = word.partition("=")[0]
                        assert flag in known or flag == "--help", f"{where}: {flag}"


@pytest.mark.parametrize("start", ELSEWHERE_TESTED)
def test_what_is_covering_really_is(start: str) -> None:
    file, _, name = ELSEWHERE_TESTED[start].partition("::")
    assert (f"def {name}" if name else start) in (ROOT / file).read_text()
    written = [command for block in here(README) for command in block.commands]
    assert start in map(covering, written), f"{start}: not in README.md any more"


@pytest.mark.parametrize(
    "document", [README, ROOT / "docs/jobs.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_what_is_submitted_is_accepted_by_its_stage(
    document: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    submissions = [
        words[1:]
        for block in blocks(document)
        for command in block.commands
        for words in fetal_words(command)
        if words[:1] == ["submit"]
    ]
    assert len(submissions) >= 2
    for words in submissions:
        own = [re.sub(r"^s3://[a-z]+", bucket, word) for word in words]
        assert stage("submit", ["--dry-run", *own]) == 0, words
        assert "ray job submit" in capsys.readouterr().out


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A user's folder: images, a trained bundle or two, and the project's own files."""
    for tool in ("curl", "promtool"):
        if shutil.which(tool) is None:
            lack(f"{tool} is not installed")
    folder = tmp_path / "work"
    folder.mkdir()
    write_textures(folder / "DATA")
    (folder / "scan.png").write_bytes(png(1))
    (folder / "study.dcm").write_bytes(cine(2))
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    shutil.copytree(ROOT / "ray_jobs/configs", folder / "configs")
    for number, bundle in enumerate(("runs/first/bundle", "runs/second/bundle", "work/run/bundle")):
        toy_bundle().save(str(folder / bundle))
        info = read_info(str(folder / bundle))
        write_info(str(folder / bundle), info.model_copy(update={"temperature": 1.0 + number}))
    place = Workplace(folder, ROOT, {"8000": free_port(), "8001": free_port()})
    try:
        yield place
    finally:
        place.stop(kill)


def endpoint(command: str) -> bool:
    return plain(command).startswith("fetal serve ") and not command.endswith("&")


@pytest.fixture
def cluster_exports(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables of a shell on the head of a cluster, whose storage is a bucket of its own."""
    with s3_server() as store:
        storage = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        with job_server(tmp_path, **storage) as server:
            yield storage | {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": server.token,
                "RAY_ADDRESS": server.gcs,
                # Else Ray takes 127.0.0.1 for an address of the network card.
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                "RAY_DASHBOARD_ADDRESS": server.address,
                "STORE": store.uri,
            }


@pytest.mark.ray
@pytest.mark.heavy
def test_commands_of_the_readme_run(workplace: Workplace) -> None:
    done = 0
    for block in here(README):
        for command in block.commands:
            if covering(command) is not None:
                continue
            if endpoint(command):
                workplace.stop(kill)
                hint = workplace.serve(command).replace("@IMAGE.png", "@scan.png")
                workplace.run(f"{hint} --fail-with-body")
            else:
                workplace.run(command)
            done += 1
    assert done >= 8


@pytest.mark.ray
@pytest.mark.heavy
def test_commands_of_the_readme_for_a_cluster_run(
    workplace: Workplace, cluster_exports: dict[str, str], tmp_path: Path
) -> None:
    store = cluster_exports["STORE"]
    cohort = write_textures(tmp_path / "cohort", patients=40, views=2)
    for file in cohort.rglob("*.*"):
        storage.upload(file, f"{store}/cohort/{file.relative_to(cohort)}")
    places = {
        "s3://planes": store,
        "http://HEAD:8265": cluster_exports["RAY_DASHBOARD_ADDRESS"],
        "HEAD:6379": cluster_exports.pop("RAY_ADDRESS"),
    }
    variables = cluster_exports | {"COLUMNS": "300"}
    exports = "".join(f"export {name}={value}\n" for name, value in variables.items())
    done = []
    for block in (block for block in blocks(README) if "cluster" in block.marks):
        for command in block.commands:
            filled = command
            for written, place in places.items():
                filled = filled.replace(written, place)
            if command.startswith("export "):
                exports += f"{filled}\n"
                continue
            (start,) = (start for start in SHORTENED if f"{command} ".startswith(f"{start} "))
            # In a checkout, which the jobs take along.
            said = workplace.run(f"{exports}cd {ROOT}\n{filled} {SHORTENED[start]}")
            done.append((start, said))
    assert [start for start, _ in done] == list(SHORTENED)
    (_, prepared), (_, trained), (_, listed), (_, found) = done
    assert f"prepared {store}/prepared: train " in prepared
    assert f"trained {store}/runs/first" in trained
    assert listed.count("SUCCEEDED") == 2
    assert f"{store}/runs: written, read, listed, swapped, deleted" in found


@pytest.mark.ray
@pytest.mark.heavy
def test_commands_of_the_runbook_run(workplace: Workplace) -> None:
    for block in here(RUNBOOK):
        workplace.run(block.text)
    for log in ("serve.log", "serve-new.log"):
        assert (workplace.folder / log).read_text().endswith("stopped\n")


REGISTRY = """
fetal register runs/first/bundle --name planes --registry $STORE/registry
fetal promote planes 1 --alias champion --registry $STORE/registry
fetal key create ward-3 --keys $STORE/keys.json >ward-3.key
"""
ANSWERS = """
until curl --fail --silent --output /dev/null http://127.0.0.1:8000/readyz; do sleep 1; done
curl --fail-with-body --silent --header "X-API-Key: $(cat ward-3.key)" \
  --header 'Content-Type: image/png' --data-binary @scan.png http://127.0.0.1:8000/v1/predict
"""


@pytest.mark.ray
@pytest.mark.heavy
def test_commands_of_the_runbook_for_a_cluster_run(
    workplace: Workplace, cluster_exports: dict[str, str]
) -> None:
    exports = "".join(f"export {name}={value}\n" for name, value in cluster_exports.items())
    workplace.run(exports + REGISTRY)
    file = workplace.folder / "deploy/serve.yaml"
    filled = file.read_text().replace("s3://BUCKET", cluster_exports["STORE"])
    filled = filled.replace("host: 0.0.0.0", "host: 127.0.0.1")
    file.write_text(filled.replace("port: 8000", f"port: {workplace.ports['8000']}"))
    written = [block for block in blocks(RUNBOOK) if "cluster" in block.marks]
    assert len(written) >= 3
    for block in written:
        text = block.text.replace("HEAD:6379", cluster_exports["RAY_ADDRESS"])
        workplace.run(exports + text.replace("s3://BUCKET", cluster_exports["STORE"]))
        if "serve deploy" in text:
            assert '"plane"' in workplace.run(exports + ANSWERS)
