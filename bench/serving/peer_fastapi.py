"""Peer: FastAPI and uvicorn, as a single file of most projects has it."""

from __future__ import annotations

import os
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from bench.serving.common import Model

app = FastAPI()
model = Model()


def work(data: bytes) -> dict[str, Any]:
    return model.answers(model.image(data)[None])[0]


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    return await run_in_threadpool(work, await request.body())


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["BENCH_PORT"]), log_level="warning", access_log=False)
