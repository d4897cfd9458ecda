"""The peers' images: PNG files in a folder for each class, decoded and augmented by torchvision."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from bench.training.common import WORKERS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transforms(size_px: int) -> v2.Compose:
    """The aspect is kept and the rest padded, then the same kinds of augmentation as ours."""
    return v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(None, max_size=size_px, antialias=True),
            v2.CenterCrop(size_px),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(size_px, scale=(0.72, 1), ratio=(1, 1), antialias=True),
            v2.ColorJitter(brightness=0.1, contrast=0.15),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def loader(folder: str, size_px: int, batch: int) -> DataLoader:
    """Shuffled batches of equal size."""
    data = ImageFolder(folder, transforms(size_px))
    return DataLoader(data, batch, shuffle=True, num_workers=WORKERS, drop_last=True)
