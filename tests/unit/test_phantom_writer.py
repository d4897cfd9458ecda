import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fetal_core.errors import FetalError
from fetal_core.phantom import PhantomConfig, make_cohort, render, write_cohort
from fetal_core.phantom.table import table_bytes

CONFIG = PhantomConfig(images=18, patients=3, seed=5)


class InterruptedRunError(Exception):
    pass


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "out"
    write_cohort(CONFIG, folder, workers=1)
    return folder


def test_the_folder_holds_the_table_and_an_image_for_each_row(written):
    rows = make_cohort(CONFIG)
    assert (written / "labels.csv").read_bytes() == table_bytes(rows)
    names = {f"images/{row.image_name}.png" for row in rows}
    assert set(contents(written)) == names | {"labels.csv", "phantom.json"}
    row = rows[0]
    with Image.open(written / "images" / f"{row.image_name}.png") as image:
        np.testing.assert_array_equal(np.asarray(image), render(row, CONFIG.seed))
    assert json.loads((written / "phantom.json").read_text())["seed"] == 5


def test_the_number_of_workers_does_not_change_a_byte(written, tmp_path):
    summary = write_cohort(CONFIG, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == contents(written)
    assert (summary.images, summary.patients, summary.written, summary.skipped) == (18, 3, 18, 0)


def test_an_interrupted_run_is_resumed_to_the_same_bytes(written, tmp_path):
    out = tmp_path / "out"

    def stop_at_seven(done: int, total: int) -> None:
        if done == 7:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        write_cohort(CONFIG, out, workers=1, progress=stop_at_seven)
    assert not (out / "labels.csv").exists()
    complete = sorted((out / "images").glob("*.png"))
    torn = complete[0]
    torn.write_bytes(torn.read_bytes()[:100])
    (out / "images" / f".{torn.name}.99.tmp").write_bytes(b"half")
    seen: list[tuple[int, int]] = []
    summary = write_cohort(CONFIG, out, workers=1, progress=lambda *step: seen.append(step))
    assert summary.skipped == len(complete) - 1
    assert seen == [(done, 18) for done in range(summary.skipped + 1, 19)]
    assert contents(out) == contents(written)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FetalError, match="holds other files"):
        write_cohort(CONFIG, tmp_path, workers=1)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_folder_with_another_cohort_is_refused(written):
    before = contents(written)
    with pytest.raises(FetalError, match="another cohort"):
        write_cohort(CONFIG.model_copy(update={"seed": 6}), written, workers=1)
    assert contents(written) == before


def test_a_foreign_image_among_the_cohorts_is_refused(tmp_path):
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "images" / "holiday.png").write_bytes(b"x")
    with pytest.raises(FetalError, match="holds other files"):
        write_cohort(CONFIG, out, workers=1)
    assert set(contents(out)) == {"images/holiday.png"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    target = tmp_path / "out"
    target.write_text("x")
    with pytest.raises(FetalError, match="is a file"):
        write_cohort(CONFIG, target, workers=1)


def test_like_writes_the_imitated_table_again(tmp_path):
    rows = make_cohort(CONFIG)[::-1][:4]
    table = tmp_path / "table.csv"
    table.write_bytes(table_bytes(rows))
    write_cohort(PhantomConfig(like=str(table)), tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "labels.csv").read_bytes() == table_bytes(rows)
    moved = tmp_path / "moved.csv"
    table.rename(moved)
    again = write_cohort(PhantomConfig(like=str(moved)), tmp_path / "out", workers=1)
    assert (again.written, again.skipped) == (0, 4)
