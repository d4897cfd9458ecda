"""The image files of a data folder, found without reading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from fetal_core import storage
from fetal_core.errors import StorageError
from fetal_core.images import SUFFIXES

_IMAGE_FOLDERS = ("images", "Images")


@dataclass(frozen=True)
class ImageFile:
    """A file that may be an image.

    Attributes:
        path: relative to the data folder.
        name: relative to the folder of images.
        size_bytes: length of the file.
    """

    path: str
    name: str
    size_bytes: int

    @property
    def has_image_suffix(self) -> bool:
        """Whether its name says that it is an image."""
        return PurePosixPath(self.path).suffix.lower() in SUFFIXES


def list_images(data_uri: str) -> list[ImageFile]:
    """All files below ``images/`` or ``Images/``, or else below the data folder, sorted by path.

    Hidden files are left out; files without an image's suffix are not, as DICOM often has none.

    Raises:
        StorageError: the folder cannot be listed.
    """
    prefix = next((f for f in _IMAGE_FOLDERS if storage.is_dir(storage.join(data_uri, f))), "")
    folder = storage.join(data_uri, prefix) if prefix else data_uri
    fs, root = storage.filesystem(folder)
    try:
        infos = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error}") from None
    found = []
    for info in infos:
        name = info.path[len(root.rstrip("/")) + 1 :]
        hidden = any(part.startswith(".") for part in name.split("/"))
        if info.type == pafs.FileType.File and not hidden:
            path = f"{prefix}/{name}" if prefix else name
            found.append(ImageFile(path, name, info.size))
    return sorted(found, key=lambda file: file.path)
