"""Images of a folder, found by suffix or by DICOM's mark."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetal_core import storage
from fetal_core.errors import StorageError
from fetal_core.files import find_images

DICOM = bytes(128) + b"DICM" + bytes(20)


def test_images_are_found_by_suffix_or_mark(tmp_path: Path) -> None:
    contents = {
        "a.PNG": b"",
        "study/IM0001": DICOM,
        "study/1.2.840.113": DICOM,
        "study/b.dcm": b"",
        "labels.csv": b"Image_name,Plane",
        "study/DICOMDIR.txt": b"DICM",
        ".hidden.png": b"",
        ".cache/c.png": b"",
    }
    folder = tmp_path / ".outer"
    for name, data in contents.items():
        storage.write_bytes(str(folder / name), data)
    names = ("a.PNG", "study/1.2.840.113", "study/IM0001", "study/b.dcm")
    expected = [str(folder / name) for name in names]
    assert find_images(str(folder)) == expected
    assert find_images(f"file://{folder}/") == expected


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        find_images(str(tmp_path / "nowhere"))
