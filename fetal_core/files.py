"""The image files of a data folder, found without reading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from fetal_core import storage
from fetal_core.dicom import DICOM_HEAD_BYTES, is_dicom
from fetal_core.images import SUFFIXES

_IMAGE_FOLDERS = ("images", "Images")


@dataclass(frozen=True)
class ImageFile:
    """A file that may be an image.

    Attributes:
        path: relative to the data folder.
        name: relative to the folder of images.
        size_bytes: length of the file.
        changed_ns: time of the last change, in nanoseconds since 1970.
    """

    path: str
    name: str
    size_bytes: int
    changed_ns: int

    @property
    def has_image_suffix(self) -> bool:
        """Whether its name says that it is an image."""
        return has_image_suffix(self.path)


def has_image_suffix(path: str) -> bool:
    """Whether a file's name says that it is an image."""
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def find_images(folder_uri: str) -> list[str]:
    """All files below a folder that are images by their suffix or by DICOM's mark, sorted.

    Hidden files are left out.

    Raises:
        StorageError: the folder cannot be listed, or a file without such a suffix cannot be read.
    """
    root = storage.absolute(folder_uri)
    seen = [uri for uri in storage.list_files(root) if "/." not in uri[len(root) :]]
    unknown = [uri for uri in seen if not has_image_suffix(uri)]
    heads = zip(unknown, storage.read_ahead(unknown, DICOM_HEAD_BYTES), strict=True)
    others = {uri for uri, head in heads if not is_dicom(head())}
    return [uri for uri in seen if uri not in others]


def list_images(data_uri: str) -> list[ImageFile]:
    """All files below ``images/`` or ``Images/``, or else below the data folder, sorted by path.

    Hidden files are left out; files without an image's suffix are not, as DICOM often has none.

    Raises:
        StorageError: the folder cannot be listed.
    """
    prefix = next((f for f in _IMAGE_FOLDERS if storage.is_dir(storage.join(data_uri, f))), "")
    folder = storage.join(data_uri, prefix) if prefix else data_uri
    root, found = storage.absolute(folder), []
    for entry in storage.entries(root):
        name = entry.uri[len(root.rstrip("/")) + 1 :]
        if not any(part.startswith(".") for part in name.split("/")):
            path = f"{prefix}/{name}" if prefix else name
            found.append(ImageFile(path, name, entry.size_bytes, entry.changed_ns))
    return sorted(found, key=lambda file: file.path)
