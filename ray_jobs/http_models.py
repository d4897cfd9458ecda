"""Shapes of the answers, for the OpenAPI document; the answers themselves are not validated."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from ray_jobs.served import Decision, ServedModel


class ModelName(BaseModel):
    """The model that has answered."""

    name: str
    version: str


class FrameResult(BaseModel):
    """The answer for one frame."""

    frame: int = Field(ge=0)
    plane: str
    confidence: float = Field(ge=0, le=1, description="calibrated probability of the plane")
    probabilities: dict[str, float]
    decision: Decision
    reason: str


class FileResult(BaseModel):
    """The answers for one file."""

    index: int = Field(ge=0)
    frames: list[FrameResult]


class Timings(BaseModel):
    """Milliseconds; all but the total are summed over files, which overlap."""

    decode: float = Field(ge=0)
    queue: float = Field(ge=0)
    engine: float = Field(ge=0)
    total: float = Field(ge=0)


class PredictAnswer(BaseModel):
    """Answer of /v1/predict."""

    model: ModelName
    results: list[FileResult]
    timings_ms: Timings


class ModelCard(BaseModel):
    """What is known of a model."""

    name: str
    version: str
    engine: str
    architecture: str
    classes: list[str]
    size_px: int
    calibrated: bool
    temperature: float
    threshold: float | None
    metrics: dict[str, Any]
    hashes: dict[str, str]
    versions: dict[str, str]
    git_commit: str | None
    created: str


class ModelList(BaseModel):
    """Answer of /v1/models."""

    models: list[ModelName]


class Health(BaseModel):
    """Answer of the probes."""

    status: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    index: int | None = None


def model_card(model: ServedModel) -> ModelCard:
    """The card of a served model."""
    info = model.info
    return ModelCard(
        name=model.name,
        version=model.version,
        engine=model.engine.name,
        size_px=info.preprocess.size_px,
        calibrated=info.threshold is not None,
        **info.model_dump(
            include={
                "architecture",
                "classes",
                "temperature",
                "threshold",
                "metrics",
                "hashes",
                "versions",
                "git_commit",
                "created",
            }
        ),
    )
