"""The report and the explorer in a real browser: no errors, charts drawn, sliders that move, wide and narrow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest

import pyro_vae as pv
from pyro_vae.reports.serving import Server
from pyro_vae.runs import LoadedRun

DIGITS = {"flatten": True, "binarize": "dynamic"}
SECONDS = 30.0  # that a page may take on a busy machine


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    pyro.clear_param_store()
    out = tmp_path_factory.mktemp("runs") / "<b>digits"
    sizes = {"latent_dim": 3, "hidden": (32,)}
    return pv.train(pv.VAE, "digits", init_args=sizes, data_args=DIGITS, out=out, epochs=8, lr=0.01, seed=0)


@pytest.fixture(scope="module")
def page(driver: Any, run: LoadedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    pv.report(run, out, num_data=60, num_samples=30, num_simulations=30)
    return out


@pytest.fixture(scope="module")
def server(driver: Any, run: LoadedRun) -> Iterator[Server]:
    made = pv.explore(run, num_data=60, browser=False, wait=False)
    yield made
    made.close()


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ink(browser: Any, selector: str) -> int:
    """How many different colors a canvas holds."""
    script = """
        const canvas = document.querySelector(arguments[0]);
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(new Uint32Array(pixels.buffer)).size;
    """
    return int(browser.execute_script(script, selector))


def js(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_report(window: Any, page: Path, width: int, dark: bool) -> None:
    browser = window(page, width, dark)
    assert browser.get_log("browser") == []
    assert js(browser, "document.documentElement.scrollWidth") <= width
    assert browser.find_element("css selector", "h1").text == "<b>digits"  # shown as text
    charts = browser.find_elements("css selector", ".plot canvas")
    assert len(charts) == 4
    assert ink(browser, ".plot canvas") > 5
    assert js(browser, "document.querySelector('.plot').clientWidth") <= width
    paper = js(browser, "getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 384) == dark
    assert js(browser, "[...document.images].every((image) => image.naturalWidth > 8)")
    boxes = js(browser, "[...document.querySelectorAll('svg.chart')].map((chart) => chart.getBBox().width)")
    assert len(boxes) == 4
    assert min(boxes) > 200
    ends = "[...document.querySelectorAll('svg.chart, figure, dl, li')].map((e) => e.getBoundingClientRect().right)"
    assert max(js(browser, ends)) <= width + 1


def test_curves_can_be_enlarged(window: Any, page: Path) -> None:
    from selenium.webdriver import ActionChains

    browser = window(page)
    before = js(browser, "document.querySelector('.plot canvas').toDataURL()")
    area = browser.find_element("css selector", ".plot .u-over")
    ActionChains(browser).move_to_element_with_offset(area, -60, 0).click_and_hold().move_by_offset(
        90, 0
    ).release().perform()
    until(lambda: js(browser, "document.querySelector('.plot canvas').toDataURL()") != before)
    assert browser.get_log("browser") == []


def test_a_script_of_a_stranger_does_not_run(window: Any, tmp_path: Path, page: Path) -> None:
    source = page.read_text().replace(
        "<main>", "<main><script>document.title = 'evil'</script><img src=x onerror=alert(1)>"
    )
    assert "evil" in source
    (tmp_path / "evil.html").write_text(source)
    browser = window(tmp_path / "evil.html")
    assert browser.title != "evil"
    assert "Content Security Policy" in " ".join(entry["message"] for entry in browser.get_log("browser"))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)], ids=["desktop", "phone"])
def test_explorer(window: Any, server: Server, width: int, dark: bool) -> None:
    browser = window(server.url, width, dark)
    until(lambda: js(browser, "document.body.dataset.ready") == "yes")
    assert js(browser, "document.documentElement.scrollWidth") <= width
    picture = "document.querySelector('#now img').src"
    before = js(browser, picture)
    slide = "const s = document.querySelector('#sliders input'); s.value = s.max; s.dispatchEvent(new Event('input'));"
    browser.execute_script(slide)
    until(lambda: js(browser, picture) != before)
    assert js(browser, "document.getElementById('time').textContent").endswith(" ms")
    assert ink(browser, "#map") > 10
    assert ink(browser, "#pad") > 5

    counted = {
        place: len(browser.find_elements("css selector", f"#{place} .tile"))
        for place in ("draws", "between", "samples")
    }
    assert counted == {"draws": 8, "between": 9, "samples": 8}
    browser.find_element("id", "map").click()
    until(lambda: "Datum 0" not in js(browser, "document.getElementById('datum-name').textContent"))
    until(lambda: js(browser, picture) != before)
    before = js(browser, picture)
    browser.execute_script(
        "const a = document.getElementById('attribute-amount'); a.value = 2; a.dispatchEvent(new Event('input'));"
    )
    until(lambda: js(browser, picture) != before)
    before = js(browser, picture)
    browser.execute_script("document.querySelector('#samples .tile').click()")
    until(lambda: js(browser, picture) != before)
    before = js(browser, picture)
    browser.execute_script("scrollTo(0, 0)")
    browser.find_element("id", "pad").click()
    until(lambda: js(browser, picture) != before)
    assert browser.get_log("browser") == []
    assert not browser.find_element("id", "problem").is_displayed()
