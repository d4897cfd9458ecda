"""Whatever happens to a table or an image, an audit ends with findings, not an exception."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_samples import write_folder
from fetal_core.audit import AuditResult, audit
from fetal_core.errors import DataError
from fetal_core.images import ImageLimits
from fetal_core.split import SplitConfig, make_split

SLOW_FOLDERS = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clean") / "data", patients=6)


@pytest.fixture
def work(clean: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clean, tmp_path / "data")


def check_outcome(folder: Path) -> AuditResult:
    """Either a manifest that can be split, or errors that say what to do."""
    result = audit(str(folder), limits=ImageLimits(max_pixels=10**6), workers=1)
    assert (result.manifest is None) == (result.counts["errors"] > 0)
    assert all(problem.reason and problem.remedy and problem.where for problem in result.problems)
    if result.manifest is not None:
        with suppress(DataError):
            split = make_split(result.manifest, SplitConfig(use_official_test=False))
            assert split.parts["train"]
    return result


Edit = tuple[str, int, int]
LINE_EDITS = st.tuples(
    st.sampled_from(["drop", "repeat", "swap", "cut", "join"]),
    st.integers(0, 1000),
    st.integers(0, 1000),
)


def edit_lines(lines: list[str], edit: Edit) -> list[str]:
    what, first, second = edit
    if not lines:
        return lines
    i, j = first % len(lines), second % len(lines)
    edited = list(lines)
    if what == "drop":
        del edited[i]
    elif what == "repeat":
        edited.insert(j, edited[i])
    elif what == "swap":
        edited[i], edited[j] = edited[j], edited[i]
    elif what == "cut":
        edited[i] = edited[i][: second % (len(edited[i]) + 1)]
    else:
        edited[i] += edited[j] if j != i else '"'
    return edited


@SLOW_FOLDERS
@given(
    edits=st.lists(LINE_EDITS, max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp500"]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_edited_tables(
    clean: Path, work: Path, edits: list[Edit], encoding: str, ending: str
) -> None:
    lines = (clean / "labels.csv").read_text().splitlines()
    for edit in edits:
        lines = edit_lines(lines, edit)
    (work / "labels.csv").write_bytes(ending.join(lines).encode(encoding))
    result = check_outcome(work)
    if not edits and encoding in {"utf-8", "utf-8-sig"}:
        assert result.problems == ()
    if encoding in {"utf-16", "utf-16-be", "utf-32", "cp500"}:
        assert result.manifest is None


@SLOW_FOLDERS
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 2000),
)
def test_mangled_table_bytes(
    clean: Path, work: Path, edits: list[tuple[int, int]], length: int
) -> None:
    data = bytearray((clean / "labels.csv").read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    (work / "labels.csv").write_bytes(data[:length])
    check_outcome(work)


@SLOW_FOLDERS
@given(table=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_tables_of_any_content(work: Path, table: bytes) -> None:
    (work / "labels.csv").write_bytes(table)
    assert check_outcome(work).manifest is None


@SLOW_FOLDERS
@given(
    image=st.integers(0, 11),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    length=st.integers(0, 4000),
)
def test_mangled_images(
    clean: Path, work: Path, image: int, edits: list[tuple[int, int]], length: int
) -> None:
    path = sorted((work / "images").iterdir())[image]
    source = clean / "images" / path.name
    data = bytearray(source.read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    path.write_bytes(data[:length])
    try:
        result = check_outcome(work)
    finally:
        shutil.copyfile(source, path)
    assert {problem.where for problem in result.errors} <= {f"images/{path.name}"}
