"""How large the inspector's page of a photograph of 1,200 tokens is, and how fast it repaints.

    python benchmarks/inspector_page.py

Writes benchmarks/results/inspector_page.json. The bundled model looks at a made picture of
640 x 480 pixels, 40 x 30 tokens, with grain and edges as a photograph has them. Two pages are
measured in a headless Chromium (chromium, chromium-driver, selenium): that of the model, and one
whose sets and scores are those of its blocks over and over, as many as 28 blocks have. A slider
is moved one step at a time through all its values, with the final set alone and with all layers of
the choice switched on; a move ends when the frame after it has been drawn. Frames without a move
are measured beside them: on a busy machine they are late too, so processor time of all processes of
the browser is counted as well. Expected: less than 5 MB, and less than 50 ms a move.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shutil
import statistics
import tempfile

import numpy as np
from PIL import Image
from record import RESULTS, write_report

import ivc_jax
from ivc_jax.methods import parse
from ivc_jax.reports.inspector import Inspection, Sweep, render
from ivc_jax.studies.inspection.prompt import Inspector, Prompt

_WIDTH, _HEIGHT, _TOKENS = 640, 480, 1200
_BLOCKS = 28  # of the deeper page
_METHODS = ("dense", "ivc:keep_ratio=0.5", "fastv:keep_ratio=0.5", "random:keep_ratio=0.5")
_MOVE = """
const [rounds, moving, done] = arguments;
const sliders = [...document.querySelectorAll("#inspector [type=range]")];
const wait = () => new Promise((drawn) => requestAnimationFrame(() => {
  const channel = new MessageChannel();  // a message comes behind the drawing of this frame
  channel.port1.onmessage = drawn;
  channel.port2.postMessage(0);
}));
const found = [];
(async () => {
  for (let round = 0; round < rounds; round += 1) {
    for (const slider of sliders) {
      for (let value = 0; value <= Number(slider.max); value += 1) {
        await wait();
        const start = performance.now();
        if (moving) {
          slider.value = value;
          slider.dispatchEvent(new Event("input", {bubbles: true}));
        }
        const painted = performance.now();
        await wait();
        found.push([painted - start, performance.now() - start]);
      }
    }
  }
  done(found);
})();
"""
_READY = "return document.getElementById('inspector').dataset.ready === 'yes'"
_OFF = "#inspector input[type=checkbox]:not(:checked)"
_TICK = f"document.querySelectorAll('{_OFF}').forEach((box) => box.click())"


def draw_photograph() -> Image.Image:
    """Draw slopes, edges and grain, the same every time."""
    draw = np.random.default_rng(0)
    rows, columns = np.indices((_HEIGHT, _WIDTH))
    pixels = np.stack([90 + rows / 4, 80 + columns / 6, 110 + 60 * np.sin(columns / 45)], axis=2)
    for _ in range(40):
        top, left = draw.integers(0, (_HEIGHT, _WIDTH))
        pixels[top : top + 70, left : left + 90] = draw.integers(0, 256, 3)
    pixels += draw.normal(0, 10, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def look() -> Inspection:
    """Ask the bundled model about the picture under all methods."""
    model, processor = ivc_jax.load("bundled", max_pixels=_WIDTH * _HEIGHT)
    inspector = Inspector(model, processor, "bundled")
    methods = [parse(spec) for spec in _METHODS]
    found = inspector.inspect(Prompt("What is it?", (draw_photograph(),)), methods, 8, tell=print)
    assert found.sweeps[0].kept.shape[-1] == _TOKENS
    return found


def deepen(sweep: Sweep) -> Sweep:
    """Repeat the layers of a sweep until there are those of a deep model."""
    if len(sweep.layers) < 2:
        return sweep
    rows = np.arange(_BLOCKS - 1) % len(sweep.layers)
    return dataclasses.replace(
        sweep,
        layers=tuple(range(1, _BLOCKS)),
        specs=tuple(sweep.specs[row] for row in rows),
        kept=sweep.kept[rows],
        flops=sweep.flops[rows],
        parts={name: values[rows] for name, values in sweep.parts.items()},
    )


def open_browser() -> object:
    """Start Chromium without a window."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def measure(browser: object, page: pathlib.Path, rounds: int) -> dict[str, object]:
    """Move the sliders of a page through all values; return milliseconds."""
    from selenium.webdriver.support.ui import WebDriverWait

    found: dict[str, object] = {"bytes": page.stat().st_size}
    browser.set_script_timeout(300)
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(_READY))
    for case in ("without a move", "final set", "all layers"):
        if case == "all layers":
            browser.execute_script(_TICK)
        before = read_processor_ms(browser.service.process.pid)
        moves = browser.execute_async_script(_MOVE, rounds, case != "without a move")
        spent = read_processor_ms(browser.service.process.pid) - before
        script, frame = zip(*moves, strict=True)
        found[case] = {
            "moves": len(moves),
            "painting_ms": _summarise(script),
            "to_the_next_frame_ms": _summarise(frame),
            "processor_ms_a_move": round(spent / len(moves), 2),
        }
    return found


def read_processor_ms(driver: int) -> float:
    """Add up the processor time of the browser that a driver has started, all threads."""
    parents = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rsplit(")")[-1].split()[1]
            )
    family = {driver}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for process in family - {driver}:
        for thread in pathlib.Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(thread.read_text().split()[0])  # nanoseconds
    return total / 1e6


def _summarise(times: tuple[float, ...]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 2),
        "worst": round(ordered[-1], 2),
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="times through all values")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    shown = look()
    deep = dataclasses.replace(shown, sweeps=[deepen(each) for each in shown.sweeps])
    blocks = 1 + max(max(each.layers, default=0) for each in shown.sweeps)
    browser, pages = open_browser(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, each in ((f"{blocks} blocks", shown), (f"{_BLOCKS} blocks", deep)):
            path = pathlib.Path(folder) / "page.html"
            path.write_text(render(each))
            pages[name] = measure(browser, path, options.rounds)
    version = browser.capabilities["browserVersion"]
    browser.quit()
    write_report(
        options.out / "inspector_page.json",
        "inspector_page",
        browser=f"Chromium {version}, headless",
        load=round(os.getloadavg()[0], 1),
        tokens=_TOKENS,
        methods=list(_METHODS),
        pages=pages,
    )


if __name__ == "__main__":
    main()
