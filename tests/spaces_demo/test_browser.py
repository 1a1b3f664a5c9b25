"""Every screen in a real Chromium: clicks, an edited number, an uploaded raster, wide and on a phone."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mapping.outputs import write_cog
from processing.grids import Grid

pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'agriclip[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium"),
]
SIZES = {"wide": {"width": 1366, "height": 860}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@contextmanager
def visit(browser, address, size):
    """The page at an address; it may neither tell an error nor fetch anything from elsewhere."""
    phone = size == "phone"
    context = browser.new_context(viewport=SIZES[size], is_mobile=phone, has_touch=phone)
    opened = context.new_page()
    opened.set_default_timeout(120_000)
    faults, elsewhere = [], []
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda asked: elsewhere.append(asked.url) if foreign(asked.url, address) else None)
    opened.goto(address)
    opened.wait_for_selector("#explore-map .leaflet-image-layer")
    yield opened
    assert faults == [] and elsewhere == []
    context.close()


@pytest.fixture(params=SIZES)
def page(request, browser, served):
    with visit(browser, served[0], request.param) as opened:
        yield opened


def foreign(url, own):
    return not url.startswith((own, own.replace("http", "ws", 1), "data:", "blob:"))


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        item = page.locator(".overflow-dropdown button", has_text=name).first
        if not item.is_visible():
            page.locator(".overflow-menu button").first.click()
        item.click()


def click_map(page, selector, across, down):
    """Clicks a map at shares of its width and height; where it was told to lie by the map itself."""
    shown = page.locator(f"{selector} .ac-map")
    shown.evaluate("map => delete map.dataset.clicked")
    for _ in range(12):  # on a busy machine the page may still move, and the click fall beside the map
        box = shown.bounding_box()
        page.mouse.click(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        try:
            page.wait_for_function(f"document.querySelector('{selector} .ac-map').dataset.clicked", timeout=10_000)
            break
        except playwright.TimeoutError:
            continue
    text = shown.get_attribute("data-clicked")
    return tuple(float(part) for part in text.split(","))


def test_explore_and_point(page, example):
    lon, lat = click_map(page, "#explore-map", 0.7, 0.6)
    page.wait_for_selector("#explore-place h4")
    wanted = example.point(lon, lat)
    from spaces_demo.example import percent

    assert percent(wanted["present"]["probability"]) in page.inner_text("#explore-place")
    before = page.inner_text("#explore-areas")
    page.locator("#explore-threshold input[type=number]").fill("0.8")
    page.locator("#explore-threshold input[type=number]").press("Tab")
    page.locator("#explore-layer").get_by_text("Change against today").click()
    page.wait_for_selector("#explore-legend >> text=stable suitable")
    assert "Areas at" in before and "gain" in page.inner_text("#explore-areas")
    # The place goes along to the next screen.
    open_tab(page, "Point report")
    page.wait_for_function(f"document.querySelector('#point-lon input').value == '{round(lon, 4):g}'")
    page.wait_for_selector("#point-card h4")
    assert wanted["sentence"] in page.inner_text("#point-report")
    lon, lat = click_map(page, "#point-map", 0.55, 0.5)
    page.wait_for_function(f"document.querySelector('#point-lat input').value == '{round(lat, 4):g}'")
    page.wait_for_function(
        "text => document.querySelector('#point-report').innerText.includes(text)",
        arg=example.point(lon, lat)["sentence"],
    )


def test_what_if_and_text(page, served):
    open_tab(page, "What if")
    page.wait_for_selector("#whatif-answer svg")
    before = page.inner_html("#whatif-answer")
    page.locator("#whatif-warming input[type=range]").focus()
    page.keyboard.press("End")
    page.locator("#whatif-warming input[type=range]").dispatch_event("pointerup")
    page.wait_for_function("html => document.querySelector('#whatif-answer').innerHTML != html", arg=before)
    open_tab(page, "Text")
    page.locator("#text-report textarea").fill("Annual precipitation 15.75 in; <b>frost</b> on 90 days.")
    page.locator("#text-go").click()
    cells = page.locator("#text-numbers [role=gridcell]")
    cells.filter(has_text="400 mm").first.wait_for()
    page.wait_for_selector("#text-answer .ac-figure")
    assert page.locator("#text-answer b").count() == 0  # what was pasted is text
    cells.filter(has_text="15.75").nth(1).dblclick()
    page.keyboard.press("Control+A")
    page.keyboard.type("30")
    page.keyboard.press("Enter")
    cells.filter(has_text="762 mm").first.wait_for()
    assert "30 in" in page.locator("#text-report textarea").input_value()


def test_my_data_and_export(page, tmp_path):
    grid = Grid.from_bounds((-90.0, 35.0, -88.0, 37.0), 0.5, "EPSG:4326")
    values = np.stack([np.full(grid.shape, 14.0), np.full(grid.shape, 1000.0)]).astype(np.float32)
    raster = write_cog(tmp_path / "mine.tif", values, grid, band_names=["temp", "rain"], units=["degC", "mm"])
    open_tab(page, "My data")
    page.locator("#data-file input[type=file]").set_input_files(raster)
    page.wait_for_selector("#data-checks >> text=taken as a raster of predictors")
    wide, seen = page.locator("#data-checks .ac-scroll").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert wide <= seen, "the table of checks is read without moving it"
    page.locator("#data-go").click()
    page.wait_for_selector("#data-result .ac-lead")
    assert "reach a probability" in page.inner_text("#data-result")
    with page.expect_download() as coming:
        page.locator("#data-files a").first.click()
    assert Path(coming.value.path()).read_bytes()[:2] in (b"II", b"MM")
    open_tab(page, "Evaluation")
    assert "forest <b>" in page.inner_text("#evaluation-comparison")
    open_tab(page, "Export")
    page.locator("#export-go").click()
    page.wait_for_selector("#export-told .ac-ok")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]


def test_the_shipped_landscape_opens(browser):
    from spaces_demo.app import build_app, serve
    from spaces_demo.example import Example, percent
    from spaces_demo.virtual import FOLDER

    shipped, demo = Example(FOLDER), build_app(FOLDER)
    _, address, _ = serve(demo, wait=False)
    try:
        with visit(browser, address, "phone") as page:
            assert "This landscape is invented" in page.inner_text(".ac-invented")
            assert page.locator(".ac-town").count() == 0
            assert not page.locator("#explore-period").is_visible() and not page.locator("#explore-model").is_visible()
            lon, lat = click_map(page, "#explore-map", 0.6, 0.6)
            page.wait_for_selector("#explore-place h4")
            wanted = shipped.point(lon, lat)
            assert percent(wanted["present"]["probability"]) in page.inner_text("#explore-place")
            page.locator("#explore-pathway").get_by_text("2 °C warmer").click()
            page.wait_for_function("document.querySelector('#explore-areas').innerText.includes('2 °C warmer')")
            open_tab(page, "Point report")
            page.wait_for_function(
                "text => document.querySelector('#point-report').innerText.includes(text)", arg=wanted["sentence"]
            )
            assert not page.locator("#point-climate").is_visible() and page.locator(".ac-stop").count() == 0
            assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    finally:
        demo.close()
