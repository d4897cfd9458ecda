import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetal_core.phantom import physics
from fetal_core.phantom.canvas import Layers, Pen, Pose
from fetal_core.phantom.curves import bezier, ellipse
from fetal_core.phantom.scan import Geometry, PolarGrid, scan_convert
from fetal_core.phantom.tissue import ATTENUATION_DB_PER_MM, Tissue

SECTOR = Geometry(320, 220, 0.0, -0.3, 0.35, 1.25, 0.6, n_depth=200, n_beams=120)
LINEAR = Geometry(320, 220, 0.0, 0.0, 0.0, 1.0, 0.5, linear=True, n_depth=200, n_beams=120)


@pytest.mark.parametrize("side_lobe", [0.0, 0.05])
@pytest.mark.parametrize("sigma", [0.7, 1.5, 3.0])
def test_uniform_tissue_gives_fully_developed_speckle(sigma, side_lobe):
    field = physics.scatterers(np.random.default_rng(1), (600, 512))
    widths = np.linspace(0.8, 3.0, 600)
    envelope = physics.envelope(field, sigma, widths, side_lobe)[20:-20, 20:-20]
    assert envelope.mean() / envelope.std() == pytest.approx(1.91, abs=0.1)
    assert (envelope**2).mean() == pytest.approx(1.0, abs=0.1)


def test_envelope_spreads_a_point_by_the_given_widths():
    field = np.zeros((200, 128), dtype=np.complex64)
    field[50, 60] = field[150, 60] = 1.0
    widths = np.where(np.arange(200) < 100, 1.5, 4.0)
    envelope = physics.envelope(field, 2.0, widths).astype(np.float64)
    beams = np.arange(128)
    for depth, expected in ((50, 1.5), (150, 4.0)):
        profile = envelope[depth] / envelope[depth].sum()
        assert np.sqrt((profile * (beams - 60) ** 2).sum()) == pytest.approx(expected, rel=0.05)
    column = envelope[:100, 60] / envelope[:100, 60].sum()
    assert np.sqrt((column * (np.arange(100) - 50) ** 2).sum()) == pytest.approx(2.0, rel=0.05)


def test_transmission_is_the_sum_of_what_lies_in_front():
    attenuation = np.full((11, 2), 0.3, dtype=np.float32)
    gain_db = physics.transmission_db(attenuation, 2.0, 0.0)
    assert gain_db[10, 0] == pytest.approx(-0.3 * 2.0 * 10.5, rel=1e-5)
    flat_db = physics.transmission_db(attenuation, 2.0, 0.3)
    assert np.ptp(flat_db) < 1e-4


def _brightness_behind(inclusion: Tissue) -> tuple[float, float]:
    """Mean envelope straight behind an inclusion, and beside it at the same depth."""
    labels = np.full((300, 120), int(Tissue.SOLID))
    labels[80:120, 50:70] = int(inclusion)
    gain_db = physics.transmission_db(ATTENUATION_DB_PER_MM[labels], 0.3, 0.2)
    field = physics.scatterers(np.random.default_rng(3), labels.shape)
    field *= physics.amplitude(gain_db)
    envelope = physics.envelope(field, 1.0, np.full(300, 1.0))
    return float(envelope[140:280, 53:67].mean()), float(envelope[140:280, 5:40].mean())


def test_bone_casts_a_shadow():
    behind, beside = _brightness_behind(Tissue.BONE)
    assert behind < 0.05 * beside


def test_fluid_enhances_what_lies_behind():
    behind, beside = _brightness_behind(Tissue.FLUID)
    assert behind > 1.15 * beside


def test_log_compression_spans_the_dynamic_range():
    levels_db = np.array([[-80.0, -60.0, -30.0, 0.0, 20.0]], dtype=np.float32)
    grey = physics.log_compress(physics.amplitude(levels_db), 60.0, 1.0)
    np.testing.assert_allclose(grey, [[0.0, 0.0, 127.5, 255.0, 255.0]], atol=0.05)


@settings(max_examples=40, deadline=None)
@given(
    beam=st.floats(0.02, 0.98),
    depth=st.floats(0.02, 0.98),
    geometry=st.sampled_from([SECTOR, LINEAR]),
)
def test_scan_conversion_puts_a_sample_where_the_grid_says(beam, depth, geometry):
    """A polar ramp read at a screen pixel equals the grid's coordinate of that pixel."""
    ramp = np.linspace(0.0, 250.0, geometry.n_depth, dtype=np.float32)
    screen = scan_convert(np.repeat(ramp[:, None], geometry.n_beams, axis=1), geometry)
    grid = PolarGrid(geometry, mm_per_px=0.5)
    column = round(beam * (geometry.width_px - 1))
    row = round(depth * (geometry.height_px - 1))
    x = (column - 0.5 * (geometry.width_px - 1)) / geometry.height_px
    point = np.array([grid.from_screen(x, row / geometry.height_px)])
    sample_beam, sample_depth = grid.to_grid(point)[0]
    inside = (
        0 < sample_beam < geometry.n_beams - 1.01 and 0 < sample_depth < geometry.n_depth - 1.01
    )
    expected = sample_depth / (geometry.n_depth - 1) * 250.0 if inside else 0.0
    assert abs(float(screen[row, column]) - expected) <= 1.5


def test_interfaces_reflect_most_where_the_beam_meets_them_squarely():
    layers = Layers(PolarGrid(LINEAR, 0.5), Tissue.SOLID, np.random.default_rng(0))
    pen = Pen(layers, Pose((0.0, 55.0)))
    pen.line(bezier([(-30.0, 0.0), (0.0, 0.0)], 12), 4.0, level_db=-10.0, floor=0.01)
    pen.line(bezier([(25.0, -25.0), (25.0, 25.0)], 12), 4.0, level_db=-10.0, floor=0.01)
    level_db = layers.specular_db()
    flat, steep = level_db[:, :60].max(), level_db[:, 70:].max()
    assert flat == pytest.approx(-10.0, abs=0.5)
    assert -60.0 < steep < flat - 12.0


def test_painting_covers_what_was_there():
    layers = Layers(PolarGrid(LINEAR, 0.5), Tissue.SOLID, np.random.default_rng(0))
    pen = Pen(layers, Pose((0.0, 55.0)))
    pen.line(bezier([(-5.0, 0.0), (5.0, 0.0)], 6), 3.0, level_db=0.0)
    pen.fill(ellipse((0.0, 0.0), (15.0, 15.0)), Tissue.FLUID)
    assert layers.specular_db().max() < -100.0
    assert layers.tissue()[100, 60] == Tissue.FLUID
    assert layers.tissue()[5, 60] == Tissue.SOLID
