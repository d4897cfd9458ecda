"""Settings of the HTTP service: limits, queue, batches and keys."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fetal_core.config import Config
from fetal_core.image_limits import ImageLimits

MIB = 1024 * 1024


class StreamSettings(Config):
    """How much a live stream may take.

    Attributes:
        max_streams: open at a time in one process.
        max_frame_bytes: of one message.
        idle_s: without any message, after which the stream is closed.
        send_s: in which the client must take an answer.
    """

    max_streams: PositiveInt = 8
    max_frame_bytes: PositiveInt = 16 * MIB
    idle_s: PositiveFloat = 60.0
    send_s: PositiveFloat = 10.0


class HttpSettings(Config):
    """How much one process of the service takes in at a time, and from whom.

    Attributes:
        max_body_bytes: of one request; longer ones are refused while they arrive.
        max_buffered_bytes: of the bodies of all requests that are being received or answered.
        max_files: parts of one multipart request.
        queue_size: files admitted at a time; a request beyond them is answered 429 at once.
        body_timeout_s: within which a body must have arrived.
        timeout_s: from the arrival of the body to the answer, else 504.
        max_batch: images that the engine takes at a time.
        batch_wait_ms: for which the engine waits for more images; 0 takes those that are there.
        decode_threads: threads that decode and resize.
        require_key: whether requests need an API key; probes, the page and its files never do.
        keys_uri: store of the API keys.
        limits: of each image, before its pixels are decoded.
        stream: limits of live streams.
    """

    max_body_bytes: PositiveInt = 64 * MIB
    max_buffered_bytes: PositiveInt = 512 * MIB
    max_files: PositiveInt = 32
    queue_size: PositiveInt = 128
    body_timeout_s: PositiveFloat = 30.0
    timeout_s: PositiveFloat = 30.0
    max_batch: PositiveInt = 4
    batch_wait_ms: float = Field(default=0.0, ge=0, le=1000)
    decode_threads: PositiveInt = 2
    require_key: bool = False
    keys_uri: str | None = None
    limits: ImageLimits = ImageLimits()
    stream: StreamSettings = StreamSettings()

    @model_validator(mode="after")
    def _consistent(self) -> HttpSettings:
        if self.require_key and self.keys_uri is None:
            raise ValueError("require_key needs keys_uri, the store of the API keys")
        if self.max_files > self.queue_size:
            raise ValueError("max_files must not exceed queue_size, or full requests never fit")
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ValueError("max_body_bytes must not exceed max_buffered_bytes")
        return self
