"""A browser, pages that are watched for what they must not do, and servers to open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright

from fake_api import FakeServer, fake_server
from opening import OpenPage
from real_app import real_app
from required import lack

ROOT = Path(__file__).resolve().parents[2]

_WATCH = """addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of this machine, or the one that ``FETAL_CHROMIUM`` names."""
    names = (os.environ.get("FETAL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        lack("no Chromium found; install it, or name it by FETAL_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server whose answers are known, and that can be made to refuse."""
    with fake_server() as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the application itself, or of the fake with ``FETAL_WEB_SERVER=fake``."""
    if os.environ.get("FETAL_WEB_SERVER") == "fake":
        with fake_server() as server:
            yield server.url
    else:
        with real_app(tmp_path_factory.mktemp("bundle")) as url:
            yield url


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens an address; in the end nothing may have left its origin, nor offended its policy."""
    contexts, faults = [], []

    def open_address(url: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        origin = urlsplit(url)[:2]

        def stay(route: Route, request: Request) -> None:
            if urlsplit(request.url)[:2] == origin:
                route.continue_()
            else:
                faults.append(f"request to {request.url}")
                route.abort()

        context.route("**/*", stay)
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("console", lambda message: faults.extend(policy_faults(message.text)))
        page.goto(url)
        return page

    yield open_address
    for context in contexts:
        context.close()
    assert faults == []


def policy_faults(message: str) -> list[str]:
    lowered = message.lower()
    return [message] if "policy" in lowered else []


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Folder for screenshots."""
    folder = ROOT / "test-artefacts" / "page"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
