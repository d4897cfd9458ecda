"""The page in a browser: what it shows is what the server said."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from fake_api import CARD, CLASSES, FakeServer
from opening import OpenPage
from pictures import dicom, encoded, picture, tiff

pytestmark = pytest.mark.web

BRAIN = encoded(picture(1))
LOOP = [picture(1), picture(1), picture(2, contrast=20), picture(3), picture(3), picture(3)]


def upload(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def choose(page: Page, *files: dict[str, Any]) -> None:
    page.get_by_label("Choose images").set_input_files(list(files))


def asked(url: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """The server's answer, asked without the page."""
    request = urllib.request.Request(f"{url}/v1/predict", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as response:
            found: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        found = json.load(error)
    return found


def percent(share: float) -> str:
    if share > 0.999:
        return "> 99.9\N{NO-BREAK SPACE}%"
    if 0 < share < 0.001:
        return "< 0.1\N{NO-BREAK SPACE}%"
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def picture_size(page: Page, selector: str) -> list[int]:
    expect(page.locator(selector)).not_to_have_js_property("naturalWidth", 0)
    size: list[int] = page.eval_on_selector(selector, "e => [e.naturalWidth, e.naturalHeight]")
    return size


def test_an_answer_is_shown_as_the_server_gives_it(site: str, open_page: OpenPage) -> None:
    page = open_page(site)
    choose(page, upload("scan.png", BRAIN))
    (frame,) = asked(site, BRAIN)["results"][0]["frames"]
    expect(page.locator("#plane")).to_have_text(frame["plane"])
    expect(page.locator("#plane")).to_be_focused()
    expect(page.locator("#confidence")).to_have_text(percent(frame["confidence"]))
    words = {"accept": "Accepted", "review": "Needs review", "reject": "Rejected"}
    expect(page.locator("#decision")).to_have_text(words[frame["decision"]])
    expect(page.locator("#reason")).to_contain_text(frame["reason"])
    cells = [cell.inner_text() for cell in page.locator("#bars td, #bars th").all()]
    shares = frame["probabilities"].items()
    assert cells == [text for name, share in shares for text in (name, "", percent(share))]
    assert picture_size(page, "#picture") == [260, 180]
    assert picture_size(page, "#heat") == [260, 180]
    expect(page.get_by_role("status")).to_contain_text(f"scan.png: {frame['plane']}")
    expect(page.locator("#timings")).to_contain_text("Answered in")


def test_bars_are_as_long_as_the_probabilities(fake: FakeServer, open_page: OpenPage) -> None:
    page = open_page(fake.url)
    choose(page, upload("scan.png", BRAIN))
    expect(page.locator("#plane")).to_be_focused()
    lengths = page.locator(".bar").evaluate_all(
        "bars => bars.map((bar) => Number(bar.style.getPropertyValue('--share')))"
    )
    shares = asked(fake.url, BRAIN)["results"][0]["frames"][0]["probabilities"]
    assert lengths == pytest.approx(list(shares.values()))


def test_the_card_of_the_model(fake: FakeServer, open_page: OpenPage) -> None:
    facts = open_page(fake.url).locator("#model")
    expect(facts).to_contain_text(f"Version{CARD['version']}")
    interval = "93.8 % (95 % interval 90.5 % to 96.7 %) on 226 test images"
    expect(facts).to_contain_text(
        interval.replace(" %", "\N{NO-BREAK SPACE}%").replace("95\N{NO-BREAK SPACE}%", "95 %")
    )
    expect(facts).to_contain_text("resnet50, openvino-int8")


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_images_can_be_pasted_and_dropped(fake: FakeServer, open_page: OpenPage, way: str) -> None:
    page = open_page(fake.url)
    page.evaluate(
        """([way, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "scan.png", { type: "image/png" }));
          const event = way === "paste"
            ? new ClipboardEvent("paste", { clipboardData: data })
            : new DragEvent("drop", { dataTransfer: data, cancelable: true });
          document.dispatchEvent(event);
        }""",
        [way, list(BRAIN)],
    )
    expect(page.locator("#plane")).to_have_text("Fetal brain")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("scan.tif", tiff([picture(1)]), "image/tiff"),
        ("scan.dcm", dicom([picture(1)]), ""),
    ],
)
def test_files_that_browsers_cannot_show_appear_under_their_heat_map(
    site: str, open_page: OpenPage, name: str, data: bytes, kind: str
) -> None:
    page = open_page(site)
    choose(page, upload(name, data, kind))
    expect(page.locator("#unshowable")).to_contain_text("cannot show files of this kind")
    expect(page.locator("#original")).to_be_hidden()
    assert picture_size(page, "#heat") == [260, 180]


def test_heat_maps_of_other_classes(fake: FakeServer, open_page: OpenPage) -> None:
    page = open_page(fake.url)
    choose(page, upload("scan.png", BRAIN))
    picture_size(page, "#heat")
    first = page.locator("#heat").get_attribute("src")
    page.get_by_label("Heat map for").select_option("Fetal femur")
    expect(page.locator("#heat")).not_to_have_attribute("src", str(first))
    assert [query["class"] for query in fake.explained] == [["Fetal brain"], ["Fetal femur"]]
    assert "Fetal femur" in str(page.locator("#heat").get_attribute("alt"))


def test_an_image_without_content_gets_no_plane(site: str, open_page: OpenPage) -> None:
    page = open_page(site)
    choose(page, upload("grey.png", encoded(picture(0) * 0 + 90)))
    expect(page.locator("#plane")).to_have_text("No plane")
    expect(page.locator("#decision")).to_have_text("Rejected")
    expect(page.locator("#confidence")).to_be_empty()
    expect(page.locator("#heat-note")).to_contain_text("rejected")
    expect(page.locator("#probabilities")).to_be_hidden()


def test_errors_are_told_in_the_server_s_words(site: str, open_page: OpenPage) -> None:
    page = open_page(site)
    choose(page, upload("<img src=x>.png", b"not an image"))
    problem = asked(site, b"not an image")
    expect(page.locator("#failure-title")).to_have_text(problem["title"])
    expect(page.locator("#failure-title")).to_be_focused()
    expect(page.locator("#failure-detail")).to_contain_text(problem["detail"])
    expect(page.locator("#failure-file")).to_have_text("<img src=x>.png")
    expect(page.locator("#result")).to_be_hidden()


def test_a_busy_server_can_be_asked_again(fake: FakeServer, open_page: OpenPage) -> None:
    fake.busy = 1
    page = open_page(fake.url)
    choose(page, upload("scan.png", BRAIN))
    expect(page.locator("#failure-detail")).to_have_text("The queue is full. Try again in 7 s.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#plane")).to_be_focused()
    expect(page.locator("#failure")).to_be_hidden()


def test_a_silent_server_is_an_error_in_words(fake: FakeServer, open_page: OpenPage) -> None:
    page = open_page(fake.url)
    page.route("**/v1/predict", lambda route: route.abort())
    choose(page, upload("scan.png", BRAIN))
    expect(page.locator("#failure-title")).to_have_text("The server did not answer")


def test_the_key_is_asked_for_and_kept_in_memory_only(
    fake: FakeServer, open_page: OpenPage
) -> None:
    fake.key = "fk_secret"
    page = open_page(fake.url)
    expect(page.locator("#model-note")).to_contain_text("key is missing or wrong")
    choose(page, upload("scan.png", BRAIN))
    field = page.get_by_label("Key, if this server asks for one")
    expect(field).to_be_focused()
    field.fill(fake.key)
    field.press("Enter")
    expect(page.locator("#plane")).to_have_text("Fetal brain")
    expect(page.locator("#model")).to_contain_text("Version7")
    kept = page.evaluate(
        "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
    )
    assert kept == [0, 0, "", f"{fake.url}/"]
    page.reload()
    expect(field).to_have_value("")
    expect(page.locator("#model-note")).to_contain_text("key is missing or wrong")


def test_several_files_are_a_list(fake: FakeServer, open_page: OpenPage) -> None:
    page = open_page(fake.url)
    files = [upload(f"scan{n}.png", encoded(picture(n))) for n in range(4)]
    choose(page, *files, upload("notes.txt", b"words", "text/plain"))
    items = page.get_by_role("list", name="Chosen images").get_by_role("button")
    expect(items).to_have_count(5)
    expect(items.nth(4)).to_contain_text("cannot be read")
    for item, plane in zip(items.all(), CLASSES, strict=False):
        expect(item).to_contain_text(plane)
    expect(page.locator("#plane")).to_have_text(CLASSES[0])
    items.nth(2).click()
    expect(page.locator("#plane")).to_have_text(CLASSES[2])
    expect(items.nth(2)).to_have_attribute("aria-current", "true")
    items.nth(4).click()
    expect(page.locator("#failure-title")).to_have_text("The image cannot be read")
    page.get_by_role("button", name="Remove all").click()
    expect(items).to_have_count(0)
    expect(page.locator("#failure")).to_be_hidden()


@pytest.mark.parametrize(
    ("name", "data"), [("loop.dcm", dicom(LOOP)), ("loop.tif", tiff(LOOP))], ids=["dcm", "tif"]
)
def test_a_loop_is_stepped_by_keys(site: str, open_page: OpenPage, name: str, data: bytes) -> None:
    page = open_page(site)
    choose(page, upload(name, data, ""))
    frames = asked(site, data, "application/octet-stream")["results"][0]["frames"]
    assert len(frames) == len(LOOP)
    expect(page.locator("#position")).to_have_text("Frame 1 of 6")
    slider = page.get_by_role("slider", name="Frame")
    slider.focus()
    for key, index in (
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("End", 5),
        ("ArrowRight", 0),
        ("ArrowLeft", 5),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        expect(page.locator("#position")).to_have_text(f"Frame {index + 1} of 6")
        expect(page.locator("#plane")).to_have_text(frames[index]["plane"])
        expect(page.locator("#confidence")).to_have_text(percent(frames[index]["confidence"]))
        value = str(slider.get_attribute("aria-valuetext"))
        assert value.startswith(f"Frame {index + 1} of 6: {frames[index]['plane']}")


def test_a_loop_plays_in_order_until_paused(fake: FakeServer, open_page: OpenPage) -> None:
    page = open_page(fake.url)
    choose(page, upload("loop.tif", tiff(LOOP), "image/tiff"))
    expect(page.locator("#position")).to_have_text("Frame 1 of 6")
    runs = page.locator("#runs tr")
    expect(runs).to_have_count(3)
    expect(runs.nth(2)).to_contain_text("4\N{EN DASH}6")
    expect(runs.nth(1)).to_contain_text("Needs review")
    page.get_by_role("button", name="Play").focus()
    watching = page.evaluate_handle(
        """() => {
          const position = document.getElementById("position");
          const seen = [];
          const enough = new Promise((resolve) => {
            new MutationObserver(() => seen.push(position.textContent) === 8 && resolve())
              .observe(position, { childList: true });
          });
          return { seen, enough };
        }"""
    )
    page.keyboard.press("Space")
    watching.evaluate("async ({ enough }) => { await enough; }")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play")).to_be_focused()
    seen = watching.evaluate("({ seen }) => seen")
    assert seen == [f"Frame {(n + 1) % 6 + 1} of 6" for n in range(len(seen))]
    frames = sorted(int(query["frame"][0]) for query in fake.explained)
    assert frames == list(range(6)), "each heat map is asked for once"
    expect(page.get_by_role("status")).to_contain_text(f"{seen[-1]}: ")


def test_the_whole_way_by_keyboard(site: str, open_page: OpenPage) -> None:
    page = open_page(site)
    # Playwright intercepts choosers once somebody listens; told before, it does so in time.
    page.on("filechooser", lambda _: None)
    page.keyboard.press("Tab")
    expect(page.get_by_label("Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files([upload("scan.png", BRAIN)])
    expect(page.locator("#plane")).to_be_focused()
    picture_size(page, "#heat")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Heat map for")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#heat")).to_have_attribute(
        "alt", f"Frame 1 under a heat map of the evidence for {CLASSES[0]}"
    )
