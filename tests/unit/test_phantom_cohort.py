from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fetal_core.errors import DataError
from fetal_core.phantom import PLANES, PhantomConfig, Row, make_cohort, render
from fetal_core.phantom.table import table_bytes

HEADER = b"Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train \n"
ROW = Row("Patient00013_Plane6_2_of_20", 13, "Fetal thorax", "Not A Brain", "Op. 1",
          "Voluson E6", True)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(images=st.integers(12, 900), share=st.floats(0.0, 1.0), seed=st.integers(0, 2**31))
def test_every_cohort_is_complete_and_consistent(images, share, seed):
    patients = max(2, round(share * images))
    rows = make_cohort(PhantomConfig(images=images, patients=patients, seed=seed))
    assert len(rows) == images == len({row.image_name for row in rows})
    assert {row.patient for row in rows} == set(range(1, patients + 1))
    sides, machines = defaultdict(set), defaultdict(set)
    for row in rows:
        sides[row.patient].add(row.train)
        machines[row.patient].add(row.machine)
        assert (row.plane == "Fetal brain") == (row.brain_plane != "Not A Brain")
    assert all(len(side) == 1 for side in sides.values())
    assert all(len(machine) == 1 for machine in machines.values())
    assert {(row.plane, row.train) for row in rows} == {(p, t) for p in PLANES for t in (0, 1)}


def test_a_small_cohort_has_a_tenth_of_each_plane_and_the_databases_split():
    rows = make_cohort(PhantomConfig(images=600, patients=80))
    counts = Counter(row.plane for row in rows)
    assert min(counts.values()) >= 60
    assert max(counts, key=counts.__getitem__) == "Other"
    assert sum(row.train for row in rows) / 600 == pytest.approx(7129 / 12400, abs=0.01)


def test_a_large_cohort_follows_the_public_table():
    rows = make_cohort(PhantomConfig(images=12400, patients=1792))
    counts = Counter(row.plane for row in rows)
    expected = (4213, 711, 3092, 1626, 1040, 1718)
    assert counts == dict(zip(PLANES, expected, strict=True))
    machines = Counter(row.machine for row in rows)
    assert machines["Voluson E6"] / 12400 == pytest.approx(5862 / 12400, abs=0.05)
    operators = {(row.machine, row.operator) for row in rows}
    assert ("Aloka", "Op. 1") not in operators
    assert ("Voluson E6", "Op. 3") not in operators


def test_names_count_the_images_of_a_patient_and_plane():
    rows = make_cohort(PhantomConfig(images=90, patients=5))
    of = Counter((row.patient, row.plane) for row in rows)
    for row in rows:
        head, digit, index, _, total = row.image_name.split("_")
        assert head == f"Patient{row.patient:05d}"
        assert digit == f"Plane{PLANES.index(row.plane) + 1}"
        assert 1 <= int(index) <= int(total) == of[row.patient, row.plane]


def test_the_table_has_the_databases_own_bytes():
    test_row = Row("a", 2, "Other", "Not A Brain", "Other", "Aloka", False)
    assert table_bytes([ROW, test_row]) == HEADER + (
        b"Patient00013_Plane6_2_of_20;13;Fetal thorax;Not A Brain;Op. 1;Voluson E6;1 \n"
        b"a;2;Other;Not A Brain;Other;Aloka;0 \n"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_like_gives_the_rows_of_a_table_in_its_order(tmp_path, encoding, newline):
    rows = make_cohort(PhantomConfig(images=40, patients=6))[::-1]
    text = table_bytes(rows).decode().replace("\n", newline)
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    assert make_cohort(PhantomConfig(like=str(path))) == rows


def test_like_reads_the_public_table(shared_data):
    rows = make_cohort(PhantomConfig(like=str(shared_data / "FETAL_PLANES_DB_data.csv")))
    assert len(rows) == 12400
    assert rows[0].image_name == "Patient00001_Plane1_1_of_15"
    assert Counter(row.train for row in rows) == {True: 7129, False: 5271}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "lacks the columns Image_name"),
        (HEADER, "has no rows"),
        (b"Image_name;Plane\na;Other\n", "lacks the columns Patient_num"),
        (HEADER.replace(b"\n", b"\xff\n"), "not UTF-8"),
        (HEADER + b"../a;1;Other;Not A Brain;Other;Aloka;1 \n", "plain file name"),
        (HEADER + b"a;x;Other;Not A Brain;Other;Aloka;1 \n", "patient 'x' is not a number"),
        (HEADER + b"a;1;Other;Not A Brain;Other;Aloka;2 \n", "neither 0 nor 1"),
        (HEADER + b"a;1;Other;B;Other;Aloka;1 \na;1;Other;B;O;A;1 \n", "row 3.*occurs twice"),
        (HEADER + b"a;1;Other\n", "has 3 of 7 cells"),
    ],
)
def test_a_table_that_cannot_be_imitated_is_refused(tmp_path, content, reason):
    path = tmp_path / "labels.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        make_cohort(PhantomConfig(like=str(path)))


def test_all_bad_rows_are_reported_together(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(HEADER + b"a;x;Other;B;O;A;1 \nb;1;Other;B;O;A;1 \nc;1;Other;B;O;A;7 \n")
    with pytest.raises(DataError) as caught:
        make_cohort(PhantomConfig(like=str(path)))
    assert [problem.row for problem in caught.value.problems] == [2, 4]


def test_more_patients_than_images_is_refused():
    with pytest.raises(ValidationError, match="must not exceed images"):
        PhantomConfig(images=20, patients=21)


def test_rendering_depends_on_row_and_seed_only():
    rows = make_cohort(PhantomConfig(images=24, patients=4))[::4]
    forward = [render(row, 7) for row in rows]
    backward = [render(row, 7) for row in rows[::-1]][::-1]
    for row, first, second in zip(rows, forward, backward, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == np.uint8
        other = render(row, 8)
        assert other.shape != first.shape or np.any(other != first)


def test_images_of_one_patient_differ():
    twin = Row(ROW.image_name.replace("_2_of", "_3_of"), *list(vars(ROW).values())[1:])
    first, second = render(ROW, 7), render(twin, 7)
    assert first.shape != second.shape or np.any(first != second)


@pytest.mark.parametrize("machine", ["Voluson E6", "Voluson S10", "Aloka", "Other", "Unheard of"])
@pytest.mark.parametrize("plane", [*PLANES, "Unheard of"])
def test_every_plane_on_every_machine_looks_like_an_ultrasound_screen(machine, plane):
    brain_plane = "Trans-cerebellum" if plane == "Fetal brain" else "Not A Brain"
    image = render(Row("x", 1, plane, brain_plane, "Other", machine, True), 3)
    grey = image if image.ndim == 2 else image[:, :, 0]
    assert 392 <= grey.shape[0] <= 787
    assert 10 < grey.mean() < 110
    assert 0.05 < (grey < 8).mean() < 0.85
    if image.ndim == 3:
        assert image.shape[2] == 3
        assert np.all(image == image[:, :, :1])
