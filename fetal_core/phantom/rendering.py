"""From a table row to pixels: a pure function of the row and the seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fetal_core.phantom import physics, tissue
from fetal_core.phantom.anatomy_mother import draw_abdominal_wall, draw_uterus
from fetal_core.phantom.canvas import Layers, Pen, Pose
from fetal_core.phantom.cohort import Row
from fetal_core.phantom.machines import (
    Machine,
    Patient,
    choose_geometry,
    machine_traits,
    patient_traits,
)
from fetal_core.phantom.overlay import draw_overlay
from fetal_core.phantom.scan import PolarGrid, scan_convert
from fetal_core.phantom.seeds import stream
from fetal_core.phantom.subjects import Subject, choose_subject

_RGB_SHARE = {"Voluson E6": 0.5, "Voluson S10": 0.0, "Aloka": 0.2, "Other": 0.0}


def render(row: Row, seed: int, shortcut: float = 0.0) -> npt.NDArray[np.uint8]:
    """Return the synthetic image of a table row.

    Args:
        row: the row; its image name, patient and machine select the random streams.
        seed: of the cohort.
        shortcut: chance that the burned-in overlay depends on the plane.

    Returns:
        uint8 image, shape (height, width), or (height, width, 3) with equal channels.
    """
    rng = stream(seed, "image", row.image_name)
    patient = patient_traits(seed, row.patient)
    machine = machine_traits(seed, row.machine)
    subject = choose_subject(row.plane, row.brain_plane, patient, rng)
    geometry = choose_geometry(row.machine, subject.view, rng)
    share = float(rng.uniform(*subject.fill))
    mm_per_px = 2.0 * subject.radii_mm[0] / (share * geometry.width_px)
    grid = PolarGrid(geometry, mm_per_px)
    layers = _paint(grid, subject, patient, rng)
    screen = scan_convert(_echo(layers, machine, patient, rng), geometry)
    draw_overlay(screen, row, grid.mm_per_px, stream(seed, "overlay", row.image_name), shortcut)
    if stream(seed, "mode", row.image_name).random() < _RGB_SHARE.get(row.machine, 0.0):
        return np.repeat(screen[:, :, None], 3, axis=2)
    return screen


def _paint(grid: PolarGrid, subject: Subject, patient: Patient, rng: np.random.Generator) -> Layers:
    layers = Layers(grid, subject.ground, rng)
    pen = Pen(layers)
    mirrored = bool(rng.random() < 0.5)
    tilt = float(rng.normal(0.0, subject.turn))
    if subject.view != "abdominal":
        angle = tilt + np.pi if mirrored else tilt
        subject.draw(pen.at(Pose((0.0, 0.0), angle, mirrored)), rng)
        return layers
    x, y = grid.from_screen(float(rng.normal(0.0, 0.06)), float(rng.normal(0.5, 0.05)))
    y = max(y, subject.radii_mm[1] + 6.0)
    draw_uterus(pen, rng, patient, (x, y), subject.radii_mm)
    draw_abdominal_wall(pen, rng, min(patient.wall_mm, max(3.0, y - subject.radii_mm[1] - 2.0)))
    angle = tilt + np.pi if rng.random() < 0.5 else tilt
    subject.draw(pen.at(Pose((x, y), angle, mirrored)), rng)
    return layers


def _echo(
    layers: Layers, machine: Machine, patient: Patient, rng: np.random.Generator
) -> physics.FloatMap:
    """Return the polar image in [0, 255] of painted layers."""
    grid, labels = layers.grid, layers.tissue()
    shape = (grid.geometry.n_depth, grid.geometry.n_beams)
    texture = 0.5 * physics.smooth_noise(rng, shape, (90, 30))
    texture += 0.8 * physics.smooth_noise(rng, shape, (30, 9))
    texture += 0.6 * physics.smooth_noise(rng, shape, (9, 7))
    level_db = tissue.BACKSCATTER_DB[labels] + texture * tissue.TEXTURE_DB[labels]
    gain_db = _gain(tissue.ATTENUATION_DB_PER_MM[labels], grid.depth_step_mm, machine, rng)
    gain_db += patient.clarity_db
    shine_db = layers.specular_db() + gain_db + 3.0 * physics.smooth_noise(rng, shape, (40, 32))
    shine = physics.amplitude(shine_db)
    diffuse = physics.amplitude(level_db + gain_db) + _clutter(shape, grid.depth_step_mm, rng)
    field = physics.scatterers(rng, shape) * (diffuse + 0.6 * shine) + 0.5 * shine
    envelope = physics.envelope(
        field,
        float(np.clip(machine.pulse_mm / grid.depth_step_mm, 0.7, 1.4)),
        _beam_sigma(grid, machine, rng),
        side_lobe=float(rng.uniform(0.01, 0.05)),
    )
    grey = physics.log_compress(envelope, machine.dynamic_range_db, machine.gamma)
    return np.asarray(ndimage.gaussian_filter(grey, machine.smoothing, truncate=3.0))


def _gain(
    attenuation: physics.FloatMap, step_mm: float, machine: Machine, rng: np.random.Generator
) -> physics.FloatMap:
    """Return the gain in dB: transmission, TGC, its unevenness, and beams in poor contact."""
    compensation = 0.17 * (1.0 + machine.tgc_error + float(rng.normal(0.0, 0.18)))
    gain_db = physics.transmission_db(attenuation, step_mm, compensation)
    n_depth, n_beams = gain_db.shape
    unevenness_db = float(rng.uniform(1.5, 4.0))
    gain_db += unevenness_db * physics.smooth_noise(rng, (n_depth, n_beams), (5, 5))
    gain_db += float(rng.normal(3.2, 1.4))
    beams = np.linspace(0.0, 1.0, n_beams)
    fade = np.minimum(np.arange(n_depth) / (0.25 * n_depth), 1.0)
    for _ in range(int(rng.poisson(1.0))):
        centre = rng.choice([rng.uniform(0.0, 0.2), rng.uniform(0.8, 1.0), rng.uniform()])
        lost_db = rng.uniform(4.0, 22.0) * np.exp(
            -(((beams - centre) / rng.uniform(0.02, 0.09)) ** 2)
        )
        gain_db -= np.outer(fade, lost_db).astype(np.float32)
    return gain_db


def _clutter(shape: tuple[int, int], step_mm: float, rng: np.random.Generator) -> physics.FloatMap:
    """Return amplitudes of reverberation, densest near the face, and of noise lifted by TGC."""
    depth_mm = np.arange(shape[0], dtype=np.float32)[:, None] * np.float32(step_mm)
    near = physics.amplitude(np.float32(rng.uniform(-54.0, -44.0)) - 0.5 * depth_mm)
    haze_db = rng.uniform(-78.0, -57.0) + 4.0 * physics.smooth_noise(rng, shape, (5, 5))
    return near + physics.amplitude(haze_db) + physics.amplitude(-74.0 + 0.10 * depth_mm)


def _beam_sigma(
    grid: PolarGrid, machine: Machine, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return the beam's spread at each depth in samples: narrowest at the focus."""
    g = grid.geometry
    focus = float(rng.uniform(0.35, 0.65))
    depth = np.linspace(0.0, 1.0, g.n_depth)
    spread = machine.beam * (g.n_beams - 1) / (2.0 * g.half_angle)
    if g.linear:
        spread = 0.012 * (g.n_beams - 1) / 2.0
    widening = np.sqrt(1.0 + (2.2 * (depth - focus)) ** 2)
    return np.maximum(spread * widening, 0.6)
