"""The inspector in a real browser: what sliders paint, keys, switches, faults, and its server.

See test_report_page.py for what it needs.
"""

import base64
import json
import re
import threading

import numpy as np
import pytest
from browser.conftest import read_requests
from helpers.inspected import COLUMNS, RATIOS, ROWS, keep, make_inspection
from PIL import Image

import ivc_jax
from ivc_jax.commands.main import main
from ivc_jax.reports import inspector

WIDE, HIGH, CELL = 40, 30, 8  # a photograph of 1,200 tokens, 8 pixels a token
_READY = "return document.getElementById('inspector')?.dataset.ready === 'yes'"
_STATUS = "return document.querySelector('#inspector [role=status]').textContent"
_MOVE = """
const slider = document.querySelector(`#inspector [data-part="${arguments[0]}"]`);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input", {bubbles: true}));
"""
# the colour in the middle of each cell, row by row
_READ = """
const [rows, columns] = arguments;
const canvas = document.querySelector("#inspector canvas");
const context = canvas.getContext("2d");
const found = [];
for (let cell = 0; cell < rows * columns; cell += 1) {
  const x = Math.floor((cell % columns + 0.5) * canvas.width / columns);
  const y = Math.floor((Math.floor(cell / columns) + 0.5) * canvas.height / rows);
  found.push([...context.getImageData(x, y, 1, 1).data].slice(0, 3));
}
return found;
"""
_TICK = """
const box = document.querySelector(`#inspector input[value="${arguments[0]}"]`);
if (box.checked !== arguments[1]) box.click();
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspector") / "kept.html"
    path.write_text(inspector.render(make_inspection(repeats=3)))
    return path


def open_page(chromium, address):
    from selenium.webdriver.support.ui import WebDriverWait

    chromium.get("about:blank")
    chromium.get_log("browser")
    read_requests(chromium)
    chromium.get(address)
    WebDriverWait(chromium, 60).until(lambda page: page.execute_script(_READY))
    return chromium


@pytest.fixture
def page(chromium, file):
    return open_page(chromium, file.as_uri())


def read_painted(page, rows=ROWS, columns=COLUMNS):
    """The tokens that are not dark, told from the picture without the final set."""
    page.execute_script(_TICK, "kept", False)
    bare = np.asarray(page.execute_script(_READ, rows, columns), float).sum(axis=1)
    page.execute_script(_TICK, "kept", True)
    painted = np.asarray(page.execute_script(_READ, rows, columns), float).sum(axis=1)
    return np.flatnonzero(painted > 0.6 * bare).tolist()


def press(page, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(page).send_keys(key).perform()


def assert_no_fault(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []


def test_it_opens_from_disk_without_errors_and_without_a_request(page, file):
    assert page.execute_script(_STATUS).startswith("12 of 24 tokens kept (50 %)")
    assert page.title == "What is kept: What is <script>alert(1)</script>?"
    assert_no_fault(page)
    requested = [url for url in read_requests(page) if not url.startswith("data:")]
    assert requested == [file.as_uri()]


def test_sliders_paint_the_embedded_sets(page):
    for layer in range(2):
        for ratio in range(len(RATIOS)):
            page.execute_script(_MOVE, "layer", layer)
            page.execute_script(_MOVE, "ratio", ratio)
            assert read_painted(page) == np.flatnonzero(keep(layer, ratio)).tolist()
            told = page.execute_script(_STATUS)
            assert told.endswith(f"ivc:layer={layer + 1},keep_ratio={RATIOS[ratio]}")


def test_the_keyboard_moves_the_sliders(page):
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.querySelector('#inspector [data-part=method]').focus()")
    press(page, Keys.TAB)
    assert page.execute_script("return document.activeElement.dataset.part") == "layer"
    press(page, Keys.HOME)
    assert page.execute_script("return document.activeElement.ariaValueText") == "1"
    press(page, Keys.TAB, Keys.END, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.execute_script(_STATUS).endswith("ivc:layer=1,keep_ratio=0.25")
    assert read_painted(page) == np.flatnonzero(keep(0, 0)).tolist()


def test_layers_are_switched_apart(page):
    page.execute_script(_TICK, "kept", False)
    bare = np.asarray(page.execute_script(_READ, ROWS, COLUMNS), float)
    for name, channel in (("cosine", 0), ("sine", 2), ("score", 1)):
        page.execute_script(_TICK, name, True)
        tinted = np.asarray(page.execute_script(_READ, ROWS, COLUMNS), float)
        page.execute_script(_TICK, name, False)
        assert np.array_equal(page.execute_script(_READ, ROWS, COLUMNS), bare)
        # the largest is tinted most, in its colour, and the smallest not at all
        most, least = (0, -1) if name == "sine" else (-1, 0)
        assert np.abs(tinted[least] - bare[least]).max() <= 2
        assert tinted[most].argmax() == channel
        assert np.abs(tinted[most] - bare[most]).max() > 50
    page.execute_script(_TICK, "seeds", True)
    marked = np.asarray(page.execute_script(_READ, ROWS, COLUMNS), float)
    assert np.flatnonzero((marked != bare).any(axis=1)).tolist() == [4]  # of layer 2


def test_a_method_without_parts_says_so(page):
    page.execute_script(
        "const method = document.querySelector('#inspector [data-part=method]');"
        "method.value = 1; method.dispatchEvent(new Event('change'));"
    )
    note = page.execute_script("return document.querySelector('[data-part=note]').textContent")
    assert note.startswith("All stay. This method has no V map, no U map, no IVC tokens")
    sliders = (
        "return [...document.querySelectorAll('#inspector [type=range]')].map(x => x.disabled)"
    )
    assert page.execute_script(sliders) == [True, True]
    assert read_painted(page) == list(range(ROWS * COLUMNS))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("served", [False, True])
def test_axe_finds_no_serious_fault(page, axe, scheme, served, tmp_path):
    if served:
        form = {"prompt": "", "method": "ivc", "ratio": "0.5", "methods": ["ivc"], "error": "no"}
        (tmp_path / "form.html").write_text(inspector.render_form(form))
        page.get((tmp_path / "form.html").as_uri())
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.execute_script(axe)
    found = page.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert len(found["passes"]) > 10
    serious = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def draw_photograph(path):
    """Draw a bright picture of 1,200 cells with edges, slopes and grain."""
    draw = np.random.default_rng(0)
    rows, columns = np.indices((HIGH * CELL, WIDE * CELL))
    pixels = np.stack([170 + rows / 4, 160 + columns / 6, 190 + 40 * np.sin(columns / 30)], axis=2)
    pixels[60:150, 80:200] = 230
    pixels += draw.normal(0, 8, pixels.shape)
    Image.fromarray(pixels.clip(140, 255).astype(np.uint8)).save(path)
    return path


def test_a_photograph_of_1200_tokens(chromium, tiny_hf, tmp_path, capsys):
    model = tiny_hf(num_hidden_layers=3)
    picture = draw_photograph(tmp_path / "photograph.png")
    options = ["--model", model, "--prompt", "What is it?", "--methods", "ivc:keep_ratio=0.5"]
    options += ["--max-new-tokens", 1, "--repeats", 0, "--max-pixels", 1 << 20]
    arguments = ["inspect", picture, *options, "--out", tmp_path / "kept.png"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "600 of 1200" in capsys.readouterr().out
    file = tmp_path / "kept.html"
    assert file.stat().st_size < 5e6
    page = open_page(chromium, file.as_uri())
    page.execute_script(_MOVE, "layer", 0)
    page.execute_script(_MOVE, "ratio", 4)
    assert_no_fault(page)  # before pixels are read: Chromium warns of that
    painted = read_painted(page, HIGH, WIDE)
    bits = page.execute_script("return document.getElementById('inspector').dataset.kept")
    embedded = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), bitorder="little")
    assert painted == np.flatnonzero(embedded).tolist()
    spec = page.execute_script(_STATUS).rpartition(": ")[2]
    assert re.fullmatch(r"ivc:layer=1,keep_ratio=0\.25", spec)
    loaded, processor = ivc_jax.load(model, max_pixels=1 << 20)
    with Image.open(picture) as shown:
        batch = processor(["What is it?"], [[shown.convert("RGB")]])
    (kept,) = ivc_jax.prefill(loaded, batch, spec).kept
    images = np.flatnonzero(batch.tokens[0] == loaded.config.image_token_id)
    assert painted == np.flatnonzero(np.isin(images, kept)).tolist()
    assert len(painted) == 300


def test_the_served_page_answers_a_form(chromium, tmp_path):
    serving = pytest.importorskip("werkzeug.serving", reason="the extra serve is not installed")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from ivc_jax.commands.inspect_server import make_app

    def answer(content, prompt, method, ratio):
        if method == "prune":
            raise ValueError("unknown method 'prune'")
        form = {"prompt": prompt, "method": method, "ratio": ratio, "methods": [], "error": ""}
        return inspector.render(make_inspection(), form)

    picture = draw_photograph(tmp_path / "photograph.png")
    server = serving.make_server("127.0.0.1", 0, make_app(answer), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        chromium.get(f"http://127.0.0.1:{server.server_port}/")
        for method, found in (("prune", "unknown method 'prune'"), ("ivc", "The choice")):
            chromium.find_element(By.NAME, "image").send_keys(str(picture))
            field = chromium.find_element(By.NAME, "method")
            field.clear()
            field.send_keys(method)
            chromium.find_element(By.CSS_SELECTOR, "form button").click()
            # A click may return before the answer is parsed: until then there is no page to read.
            shown = f"return document.body?.innerText.includes({json.dumps(found)})"
            WebDriverWait(chromium, 60).until(lambda page, js=shown: page.execute_script(js))
        WebDriverWait(chromium, 60).until(lambda page: page.execute_script(_READY))
        assert chromium.execute_script(_STATUS).startswith("12 of 24 tokens kept")
    finally:
        server.shutdown()
        server.server_close()
