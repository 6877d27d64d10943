"""The explorer as a user has it: a notebook served by voila, driven in a headless Chromium. Needs no network."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import flowsim as fs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS = "no browser: the test needs Chromium, voila, ipykernel and playwright"
if CHROMIUM is None:
    pytest.skip(NEEDS, allow_module_level=True)
for module in ("voila", "ipykernel", "playwright"):
    pytest.importorskip(module, reason=NEEDS)
nbformat = pytest.importorskip("nbformat", reason=NEEDS)

from playwright.sync_api import expect, sync_playwright  # noqa: E402  # pyright: ignore[reportMissingImports]

#: Milliseconds that anything may take here; the first run compiles.
PATIENCE = 180_000


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, folder) of a notebook that holds `fs.explore()` and nothing else."""
    folder = tmp_path_factory.mktemp("notebook")
    cell = nbformat.v4.new_code_cell("import flowsim as fs\nexplorer = fs.explore()")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "explore.ipynb")
    port = free_port()
    command = [sys.executable, "-m", "voila", "explore.ipynb", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    environment = os.environ | {"JUPYTER_DATA_DIR": str(folder / "data"), "JUPYTER_RUNTIME_DIR": str(folder / "run")}
    with open(folder / "voila.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}/"
        try:
            wait_for(address, server, folder / "voila.log")
            yield address, folder
        finally:
            server.terminate()
            server.wait(30)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            raise RuntimeError(log.read_text("utf-8"))
        try:
            urllib.request.urlopen(f"{address}static/", timeout=1).close()
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.25)
        else:
            return
    raise RuntimeError(f"The server did not answer. {log.read_text('utf-8')}")


@pytest.fixture(scope="module")
def page(served):
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(served[0], wait_until="domcontentloaded", timeout=PATIENCE)
        page.locator("img.widget-image").wait_for(timeout=PATIENCE)
        yield page
        browser.close()


def shown(page) -> str:
    """The source of the picture, another one for another picture."""
    return page.locator("img.widget-image").get_attribute("src")


def changed(page, before: str) -> float:
    """Seconds until the picture is another one."""
    begin = time.perf_counter()
    page.wait_for_function("s => document.querySelector('img.widget-image').src !== s", arg=before, timeout=PATIENCE)
    return time.perf_counter() - begin


def slider(page, label: str):
    row = page.locator(".widget-inline-hbox", has=page.locator("label", has_text=label))
    return row.locator(".noUi-handle").first


def readouts(page) -> list[str]:
    return page.locator(".widget-readout").all_inner_texts()


def code(page) -> str:
    return page.locator("textarea").input_value()


@pytest.mark.slow
def test_sliders_presets_and_exports_in_a_browser(served, page):
    folder = served[1]
    assert "rings(5, 0.309, -144.0)" in code(page)

    # Sliders show the numbers that are run; those that change nothing here are off.
    assert "0.07" in readouts(page)
    assert "0.0701" not in readouts(page)
    assert page.locator("select").first.input_value() == "Figure 2"
    for label, used in (("twist", True), ("other τ", False), ("swapped fraction", False), ("seed", False)):
        row = page.locator(".widget-inline-hbox", has=page.locator("label", has_text=label))
        assert row.locator(".noUi-target[disabled]").count() == (0 if used else 1), label

    # A slider moves the run; the code follows. Numbers compile nothing, so that later answers are fast.
    for label, text in (("cone height", "rings(5, 0.3"), ("temperature τ₀", "Learnable(0.0")):
        old = code(page)
        slider(page, label).press("ArrowRight")
        expect(page.locator("textarea")).not_to_have_value(old, timeout=PATIENCE)
        assert text in code(page)
        assert "geomspace(0.01, 100000.0, 120)" in code(page)  # no other control has moved
    page.wait_for_timeout(2000)  # let the last pictures arrive
    seconds = []
    for _ in range(7):
        before = shown(page)
        slider(page, "cone height").press("ArrowRight")
        seconds.append(changed(page, before))
    print(f"seconds until the picture changed: {min(seconds):.3f} .. {sorted(seconds)[3]:.3f} .. {max(seconds):.3f}")

    # While another structure compiles, the picture is marked as one of the old settings.
    before = shown(page)
    page.locator("select").nth(2).select_option("linear")
    expect(page.get_by_text("compiling ...")).to_be_visible(timeout=PATIENCE)
    assert page.locator(".flowsim-waits").evaluate("e => getComputedStyle(e).opacity") == "0.3"
    if target := os.environ.get("FLOWSIM_SCREENSHOT"):
        page.screenshot(path=target.replace(".png", "-compiling.png"))
    assert shown(page) == before
    changed(page, before)
    expect(page.locator(".flowsim-waits")).to_have_count(0, timeout=PATIENCE)
    expect(page.get_by_text("compiling ...")).to_have_count(0, timeout=PATIENCE)
    assert page.locator("select").first.input_value() == "(own settings)"

    # A preset sets the controls.
    page.locator("select").first.select_option("SLRT 0.1")
    page.wait_for_function("document.querySelector('textarea').value.includes('Exp(), 0.1)')", timeout=PATIENCE)

    # What is shown can be saved, as a result that the calls give.
    page.locator("input[type=text]").last.fill("shown.nc")
    page.locator("input[type=text]").last.press("Tab")
    page.get_by_role("button", name="save").click()
    expect(page.get_by_text("Saved shown.nc.")).to_be_visible(timeout=PATIENCE)
    names: dict = {}
    exec(code(page), names)
    saved = fs.load(folder / "shown.nc")
    assert saved.final["modality_gap"] == pytest.approx(names["result"].final["modality_gap"], rel=1e-12)

    # What cannot be is explained in place: no trace of a stack anywhere.
    page.locator("input[type=text]").last.fill("shown.doc")
    page.locator("input[type=text]").last.press("Tab")
    page.get_by_role("button", name="save").click()
    expect(page.get_by_text("cannot be written as")).to_be_visible(timeout=PATIENCE)
    assert "Traceback" not in page.content()
    if target := os.environ.get("FLOWSIM_SCREENSHOT"):
        page.screenshot(path=target)
