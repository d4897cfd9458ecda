"""Synthetic ultrasound cohort: images with physics and anatomy, and the database's own table."""

from fetal_core.phantom.cohort import PLANES, PhantomConfig, Row
from fetal_core.phantom.rendering import render
from fetal_core.phantom.table import make_cohort
from fetal_core.phantom.writer import WrittenCohort, write_cohort

__all__ = [
    "PLANES",
    "PhantomConfig",
    "Row",
    "WrittenCohort",
    "make_cohort",
    "render",
    "write_cohort",
]
