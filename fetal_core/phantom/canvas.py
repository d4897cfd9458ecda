"""Painter of tissue labels and specular interfaces, straight into the polar grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fetal_core.phantom.curves import Points, moved, normals, ribbon, rotate
from fetal_core.phantom.scan import PolarGrid
from fetal_core.phantom.tissue import Tissue

NO_ECHO_DB = -200.0


@dataclass(frozen=True)
class Pose:
    """Placement of a local frame in the scene: mirrored, turned, then moved (millimetres)."""

    centre_mm: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    mirrored: bool = False

    def place(self, points_mm: Points) -> Points:
        """Return local points in the scene's frame."""
        local = points_mm * np.array([1.0, -1.0]) if self.mirrored else points_mm
        return moved(rotate(local, self.angle), *self.centre_mm)


@dataclass(frozen=True)
class _Warp:
    """Smooth displacement of the whole scene, so that nothing is quite straight or round."""

    waves_per_mm: npt.NDArray[np.float64]
    phases: npt.NDArray[np.float64]
    shifts_mm: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, unit_mm: float) -> _Warp:
        cycles = np.geomspace(1.0, 16.0, 6)
        direction = rng.uniform(0.0, 2 * np.pi, size=6)
        waves = np.stack([np.cos(direction), np.sin(direction)]) * 2 * np.pi * cycles / unit_mm
        sizes = 0.011 * unit_mm / cycles**0.9
        shifts = rng.normal(size=(6, 2)) * sizes[:, None]
        return cls(waves, rng.uniform(0.0, 2 * np.pi, size=6), shifts)

    def bend(self, points_mm: Points) -> Points:
        return points_mm + np.sin(points_mm @ self.waves_per_mm + self.phases) @ self.shifts_mm


class Layers:
    """The painted maps of one image: tissue labels and specular echoes in dB."""

    def __init__(self, grid: PolarGrid, ground: Tissue, rng: np.random.Generator) -> None:
        size = (grid.geometry.n_beams, grid.geometry.n_depth)
        self.grid = grid
        self._warp = _Warp.draw(rng, grid.unit_mm)
        self._tissue = Image.new("L", size, int(ground))
        self._specular = Image.new("F", size, NO_ECHO_DB)
        self._draw_tissue = ImageDraw.Draw(self._tissue)
        self._draw_specular = ImageDraw.Draw(self._specular)

    def paint(self, outline_mm: Points, tissue: Tissue) -> None:
        """Fill a closed outline; what was there before is gone, interfaces included."""
        corners = self.grid.to_grid(self._warp.bend(outline_mm)).ravel().tolist()
        self._draw_tissue.polygon(corners, fill=int(tissue))
        self._draw_specular.polygon(corners, fill=NO_ECHO_DB)

    def reflect(self, path_mm: Points, width_mm: float, level_db: float, floor: float) -> None:
        """Draw an interface: ``level_db`` where the beam meets it squarely, weaker aslant."""
        path_mm = self._warp.bend(path_mm)
        normal = normals(path_mm)
        facing = np.abs(np.sum(normal * self.grid.beam_direction(path_mm), axis=1))
        echo_db = level_db + 20.0 * np.log10(np.maximum(facing**2, floor))
        offset = normal * (0.5 * width_mm)
        near, far = self.grid.to_grid(path_mm + offset), self.grid.to_grid(path_mm - offset)
        quads = np.concatenate([near[:-1], near[1:], far[1:], far[:-1]], axis=1)
        for quad, echo in zip(quads.tolist(), echo_db.tolist(), strict=False):
            self._draw_specular.polygon(quad, fill=echo)

    def tissue(self) -> npt.NDArray[np.uint8]:
        """Return the labels, shape (n_depth, n_beams)."""
        return np.asarray(self._tissue)

    def specular_db(self) -> npt.NDArray[np.float32]:
        """Return the interfaces' levels in dB, shape (n_depth, n_beams)."""
        return np.asarray(self._specular)


@dataclass(frozen=True)
class Pen:
    """Draws on layers in the local frame of a pose."""

    layers: Layers
    pose: Pose = Pose()

    def at(self, pose: Pose) -> Pen:
        """Return a pen for another frame on the same layers."""
        return replace(self, pose=pose)

    def fill(self, outline_mm: Points, tissue: Tissue) -> None:
        """Fill a closed outline."""
        self.layers.paint(self.pose.place(outline_mm), tissue)

    def line(self, path_mm: Points, width_mm: float, level_db: float, floor: float = 0.15) -> None:
        """Draw a specular interface along a path."""
        self.layers.reflect(self.pose.place(path_mm), width_mm, level_db, floor)

    def rod(
        self,
        path_mm: Points,
        width_mm: float,
        tissue: Tissue,
        level_db: float,
        floor: float = 0.15,
        taper: float = 0.0,
    ) -> None:
        """Draw a solid strip of tissue whose whole section reflects."""
        self.fill(ribbon(path_mm, width_mm, taper), tissue)
        self.line(path_mm, width_mm, level_db, floor)
