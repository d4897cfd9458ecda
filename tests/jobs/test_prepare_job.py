"""Preparing shards with Ray Data: their content, interruptions, and images that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cohorts import flags, kill_when, png, recipe, write_textures
from fetal_core import images
from fetal_core.errors import DataError, StaleInputError
from fetal_core.images import ImageLimits
from fetal_core.preprocess import preprocess
from fetal_core.recipe import Recipe
from ray_jobs.prepare import PrepareOutcome, prepare, show

pytestmark = pytest.mark.ray

LARGE = recipe(preprocess={"size_px": 1024})


def shard_files(out: Path) -> dict[str, Path]:
    shards = out / "shards"
    return {str(file.relative_to(shards)): file for file in sorted(shards.rglob("*.parquet"))}


def test_shards_hold_the_preprocessed_images(
    prepared: PrepareOutcome, cohort: Path, small_recipe: Recipe
) -> None:
    manifest, split, index = prepared.prepared.load()
    side = small_recipe.preprocess.size_px
    seen: dict[str, list[str]] = {}
    for name, file in shard_files(Path(prepared.prepared.uri)).items():
        for row in pq.read_table(file).to_pylist():
            data = (cohort / "images" / f"{row['image_id']}.png").read_bytes()
            expected_HW = preprocess(images.decode(data, ImageLimits()), small_recipe.preprocess)
            got_HW = np.frombuffer(row["image"], np.uint8).reshape(side, side)
            np.testing.assert_array_equal(got_HW, expected_HW)
            plane = manifest.classes[row["label"]]
            assert f";{row['patient']};{plane};" in table_line(cohort, row["image_id"])
            seen.setdefault(name.partition("/")[0], []).append(row["image_id"])
    assert {part: sorted(ids) for part, ids in seen.items()} == {
        part: sorted(ids) for part, ids in split.parts.items()
    }
    assert {part: index.rows(part) for part in seen} == {p: len(ids) for p, ids in seen.items()}


def table_line(cohort: Path, image_id: str) -> str:
    lines = (cohort / "labels.csv").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{image_id};")]
    return line


def test_mean_and_deviation_are_those_of_the_training_part(prepared: PrepareOutcome) -> None:
    pixels = [
        np.frombuffer(image, np.uint8)
        for name, file in shard_files(Path(prepared.prepared.uri)).items()
        if name.startswith("train/")
        for image in pq.read_table(file)["image"].to_pylist()
    ]
    values = np.concatenate(pixels) / 255
    assert prepared.index.mean == pytest.approx(values.mean(), abs=1e-9)
    assert prepared.index.std == pytest.approx(values.std(), abs=1e-9)


def test_a_killed_preparation_is_continued(cluster: None, tmp_path: Path) -> None:
    data = write_textures(tmp_path / "data", patients=24, views=6, height=700, width=900)
    whole = prepare(str(data), str(tmp_path / "whole"), LARGE)
    assert whole.written == 144

    out = tmp_path / "killed"
    command = ("prepare", str(data), "--out", str(out), *flags(LARGE))
    kill_when(lambda: bool(shard_files(out)), *command, cwd=tmp_path)
    assert not (out / "shards/index.json").exists()
    finished = {name: file.stat().st_mtime_ns for name, file in shard_files(out).items()}
    assert 0 < len(finished) < len(shard_files(tmp_path / "whole"))
    kept = sum(pq.read_metadata(file).num_rows for file in shard_files(out).values())

    continued = prepare(str(data), str(out), LARGE)
    assert continued.written == 144 - kept
    assert continued.index == whole.index
    after = shard_files(out)
    assert {name: after[name].stat().st_mtime_ns for name in finished} == finished
    for name, file in shard_files(tmp_path / "whole").items():
        assert after[name].read_bytes() == file.read_bytes()


def test_a_shard_cut_short_is_written_again(cluster: None, textures: Path, tmp_path: Path) -> None:
    first = prepare(str(textures), str(tmp_path / "out"), recipe())
    victim = next(iter(shard_files(tmp_path / "out").values()))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    again = prepare(str(textures), str(tmp_path / "out"), recipe())
    assert again.written == pq.read_metadata(victim).num_rows
    assert victim.read_bytes() == whole
    assert again.index == first.index


def test_a_whole_preparation_is_not_made_again(
    cluster: None, textures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(str(textures), str(tmp_path / "out"), recipe())
    audited: list[int] = []
    longer = recipe(train={"epochs": 9})

    def again(**options: bool) -> PrepareOutcome:
        audited.clear()
        return prepare(
            str(textures),
            str(tmp_path / "out"),
            longer,
            on_audit=lambda done, total: audited.append(done),
            **options,
        )

    second = again()
    assert (second.reused, second.written, audited) == (True, 0, [])
    assert (second.index, second.split, second.problems) == (
        first.index,
        first.split,
        first.problems,
    )
    assert json.loads((tmp_path / "out/recipe.json").read_text())["train"]["epochs"] == 9
    show(second)
    assert "already prepared" in capsys.readouterr().out
    assert not again(force=True).reused
    assert len(audited) == 10


def touch_an_image(data: Path) -> None:
    file = data / "images/P01_0.png"
    file.write_bytes(file.read_bytes())


def add_an_image(data: Path) -> None:
    (data / "images/extra.png").write_bytes(png(500))


def end_the_table_otherwise(data: Path) -> None:
    table = data / "labels.csv"
    table.write_text(table.read_text() + "\n")


@pytest.mark.parametrize("change", [touch_an_image, add_an_image, end_the_table_otherwise])
def test_changed_inputs_are_audited_again(
    change: Callable[[Path], None], cluster: None, textures: Path, tmp_path: Path
) -> None:
    prepare(str(textures), str(tmp_path / "out"), recipe())
    change(textures)
    audited: list[int] = []
    again = prepare(
        str(textures),
        str(tmp_path / "out"),
        recipe(),
        on_audit=lambda done, _: audited.append(done),
    )
    assert (again.reused, again.written, len(audited)) == (False, 0, 10)
    assert prepare(str(textures), str(tmp_path / "out"), recipe()).reused


def test_a_corrected_label_is_another_cohort(cluster: None, textures: Path, tmp_path: Path) -> None:
    prepare(str(textures), str(tmp_path / "out"), recipe())
    table = textures / "labels.csv"
    table.write_text(table.read_text().replace("P01_0;1;Fetal femur", "P01_0;1;Fetal brain"))
    with pytest.raises(StaleInputError, match="--force"):
        prepare(str(textures), str(tmp_path / "out"), recipe())


def test_other_settings_need_force(cluster: None, textures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(str(textures), str(out), recipe())
    before = (out / "shards/index.json").read_bytes(), (out / "recipe.json").read_bytes()
    larger = recipe(preprocess={"size_px": 48})
    with pytest.raises(StaleInputError, match="--force"):
        prepare(str(textures), str(out), larger)
    assert before == ((out / "shards/index.json").read_bytes(), (out / "recipe.json").read_bytes())
    forced = prepare(str(textures), str(out), larger, force=True)
    assert forced.index.preprocess.size_px == 48
    assert forced.written == 10
    forced.prepared.check_made_for(larger)


def test_images_that_change_after_the_audit_are_all_listed(
    cluster: None, textures: Path, tmp_path: Path
) -> None:
    folder = textures / "images"
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}

    def spoil(done: int, total: int) -> None:
        (folder / "P01_0.png").write_bytes(kept["P01_0.png"][:200])
        (folder / "P02_0.png").write_bytes(png(999))
        (folder / "P03_0.png").unlink(missing_ok=True)

    with pytest.raises(DataError) as caught:
        prepare(str(textures), str(tmp_path / "out"), recipe(), on_shards=spoil)
    assert {(found.where, found.kind) for found in caught.value.problems} == {
        ("images/P01_0.png", "changed-image"),
        ("images/P02_0.png", "changed-image"),
        ("images/P03_0.png", "missing-image"),
    }
    assert not (tmp_path / "out/shards/index.json").exists()

    for name, data in kept.items():
        (folder / name).write_bytes(data)
    assert prepare(str(textures), str(tmp_path / "out"), recipe()).index.rows("train") > 0


def test_all_faults_of_the_cohort_are_listed_and_nothing_is_written(
    textures: Path, tmp_path: Path
) -> None:
    folder = textures / "images"
    (folder / "P01_0.png").write_bytes((folder / "P01_0.png").read_bytes()[:200])
    (folder / "P02_0.png").write_bytes(b"not an image")
    (folder / "P03_0.png").unlink()
    with pytest.raises(DataError) as caught:
        prepare(str(textures), str(tmp_path / "out"), recipe())
    assert len(caught.value.problems) == 3
    assert not (tmp_path / "out").exists()


def test_the_audits_findings_are_kept(cluster: None, textures: Path, tmp_path: Path) -> None:
    (textures / "images/extra.png").write_bytes(png(500))
    outcome = prepare(str(textures), str(tmp_path / "out"), recipe())
    (finding,) = json.loads(Path(outcome.prepared.audit_uri).read_text())
    assert (finding["kind"], finding["where"]) == ("image-without-row", "images/extra.png")
