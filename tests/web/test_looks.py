"""Accessibility, narrow and dark screens; screenshots are kept in ``test-artefacts/page``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from fake_api import OPENAPI, STATIC, FakeServer
from fetal_core.explain import PALETTE
from opening import OpenPage
from pictures import dicom, encoded, picture

pytestmark = pytest.mark.web

DESKTOP = {"viewport": {"width": 1200, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
SCREENS: dict[str, dict[str, Any]] = {
    "desktop-light": DESKTOP | {"color_scheme": "light"},
    "desktop-dark": DESKTOP | {"color_scheme": "dark"},
    "phone-light": PHONE | {"color_scheme": "light"},
    "phone-dark": PHONE | {"color_scheme": "dark", "reduced_motion": "reduce"},
}
FRAMES = [picture(1), picture(2, contrast=20), picture(0) * 0 + 9, picture(3)]


def send(page: Page, **files: bytes) -> None:
    uploads = [{"name": name, "mimeType": "", "buffer": data} for name, data in files.items()]
    page.get_by_label("Choose images").set_input_files(uploads)


def empty(page: Page) -> None:
    expect(page.locator("#model")).to_contain_text("Version")


def single(page: Page) -> None:
    send(page, scan=encoded(picture(1)))
    expect(page.locator("#heat")).not_to_have_js_property("naturalWidth", 0)


def loop(page: Page) -> None:
    send(page, loop=dicom(FRAMES))
    expect(page.locator("#heat")).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator("#runs tr")).to_have_count(4)


def several(page: Page) -> None:
    send(page, a=encoded(picture(1)), b=encoded(picture(2, contrast=20)), c=b"not an image")
    expect(page.locator("#list .failed")).to_have_count(1)
    page.locator("#access summary").click()


def failure(page: Page) -> None:
    send(page, c=b"not an image")
    expect(page.locator("#failure")).to_be_visible()


STATES: list[Callable[[Page], None]] = [empty, single, loop, several, failure]


def check_looks(page: Page, file: Path) -> None:
    page.screenshot(path=file, full_page=True)
    width_px, window_px = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width_px <= window_px
    found = Axe().run(page).response["violations"]
    faults = {fault["id"]: [node["target"] for node in fault["nodes"]] for fault in found}
    assert faults == {}


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_page_is_accessible_and_fits(
    fake: FakeServer,
    open_page: OpenPage,
    artefacts: Path,
    state: Callable[[Page], None],
    screen: str,
) -> None:
    page = open_page(fake.url, **SCREENS[screen])
    state(page)
    check_looks(page, artefacts / f"{state.__name__}-{screen}.png")


@pytest.mark.parametrize("screen", ["desktop-light", "phone-dark"])
def test_docs_show_the_openapi_document(
    fake: FakeServer, open_page: OpenPage, artefacts: Path, screen: str
) -> None:
    page = open_page(f"{fake.url}/docs", **SCREENS[screen])
    expect(page.get_by_role("heading", name="POST /v1/explain")).to_be_visible()
    operation = OPENAPI["paths"]["/v1/explain"]["post"]
    expect(page.locator("main")).to_contain_text(operation["parameters"][0]["description"])
    expect(page.locator("main")).to_contain_text("application/problem+json (Problem)")
    expect(page.locator("pre").first).to_contain_text(f"{fake.url}/v1/predict")
    page.get_by_text("Problem", exact=True).click()
    shown = page.locator("details pre").inner_text()
    assert json.loads(shown) == OPENAPI["components"]["schemas"]["Problem"]
    check_looks(page, artefacts / f"docs-{screen}.png")


def test_nothing_moves_by_itself_where_motion_is_unwanted(
    fake: FakeServer, open_page: OpenPage
) -> None:
    page = open_page(fake.url, reduced_motion="reduce")
    loop(page)
    durations = page.locator("*").evaluate_all(
        "all => all.map((e) => getComputedStyle(e))"
        ".map((style) => style.transitionDuration + style.animationName)"
    )
    assert set(durations) == {"0snone"}
    page.wait_for_timeout(400)
    expect(page.locator("#position")).to_have_text("Frame 1 of 4")


def test_the_scale_has_the_colours_of_the_heat_map() -> None:
    style = (STATIC / "style.css").read_text("utf-8")
    assert ", ".join(PALETTE) in style


def test_files_of_the_page_load_nothing_from_elsewhere_and_hold_no_inline_code() -> None:
    files = [path for path in STATIC.iterdir() if path.suffix in {".html", ".js", ".css", ".svg"}]
    assert len(files) > 8
    for path in files:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        for word in ("http:", "https:", "innerHTML", "eval(", " style=", " onclick="):
            assert word not in text, f"{path.name}: {word}"
