"""The answers of a report in a real browser: from disk, by mouse and keyboard, without a network.

apt-get install chromium chromium-driver; pip install selenium; npm pack axe-core
AXE_CORE=axe-core-*.tgz python -m pytest tests/browser
"""

import json
import time

import numpy as np
import pytest
from browser.conftest import read_requests
from helpers import browsed

from ivc_jax.reports import browser, figures, report, thumbnails

_TEXT = "return arguments[0].map(x => document.querySelector(x).textContent)"
_IDS = "return [...document.querySelectorAll('#answers article')].map(x => x.dataset.example)"
_SET = """
const part = document.querySelector(`#answers [data-part="${arguments[0]}"]`);
part.value = arguments[1];
part.dispatchEvent(new Event(part.type === "search" ? "input" : "change", {bubbles: true}));
"""
# the mean brightness of each cell's middle, row by row
_READ_CELLS = """
const [selector, side, done] = arguments;
const canvas = document.querySelector(selector);
const wait = () => {
  if (canvas.dataset.drawn !== "yes") { setTimeout(wait, 20); return; }
  const context = canvas.getContext("2d");
  const found = [];
  for (let cell = 0; cell < side * side; cell += 1) {
    const x = Math.floor((cell % side + 0.5) * canvas.width / side);
    const y = Math.floor((Math.floor(cell / side) + 0.5) * canvas.height / side);
    const data = context.getImageData(x - 3, y - 3, 7, 7).data;
    let sum = 0;
    for (let n = 0; n < data.length; n += 4) sum += data[n] + data[n + 1] + data[n + 2];
    found.push(sum / (data.length / 4 * 3));
  }
  done(found);
};
wait();
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = browsed.write_run(tmp_path_factory.mktemp("page") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda results: [])
        report.write(found, browsed.read_results(found))
    return found


@pytest.fixture
def page(chromium, folder):
    """The report, freshly opened from disk."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    read_requests(chromium)
    chromium.get((folder / "report.html").as_uri())
    return chromium


def set_part(page, name, value):
    page.execute_script(_SET, name, value)


def list_examples(page):
    return page.execute_script(_IDS)


def read_status(page):
    return page.execute_script(_TEXT, ["#answers [role=status]"])[0]


def press(page, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(page).send_keys(key).perform()


def test_the_report_opens_without_errors_and_without_a_request(page):
    assert list_examples(page)[:2] == ["grounding/e1", "grounding/e2"]
    assert read_status(page) == "50 of 50 examples, page 1 of 3"
    assert page.title == "Visual-token pruning: tiny"  # hostile text has not run
    time.sleep(0.5)  # pictures
    assert [entry for entry in page.get_log("browser") if entry["level"] != "INFO"] == []
    requested = [url for url in read_requests(page) if not url.startswith("data:")]
    assert all(url.startswith("file:") and "report.html" in url for url in requested)
    assert len(requested) == 1


def test_filters_change_the_rows(page):
    rows = range(1, browsed.ROWS + 1)
    wrong = {n for n in rows if not browsed.score(n, 1)}
    set_part(page, "task", "0")
    set_part(page, "filter", "first-wrong")  # ivc and dense, unless others are chosen
    assert list_examples(page) == [f"grounding/e{n}" for n in sorted(wrong)]
    option = "#answers option[value='first-wrong']"
    assert page.execute_script(_TEXT, [option]) == ["ivc, 0.5 wrong, dense right"]
    set_part(page, "filter", "disagree")
    either = [n for n in rows if not (browsed.score(n, 1) and browsed.score(n, 2))]
    assert list_examples(page) == [f"grounding/e{n}" for n in either]
    set_part(page, "task", "-1")
    set_part(page, "filter", "failed")
    assert list_examples(page) == [f"colour/e{browsed.FAILED}"]
    set_part(page, "filter", "all")
    set_part(page, "text", "question 13?")
    assert list_examples(page) == ["grounding/e13", "colour/e13"]


def test_examples_are_sorted_by_the_difference_of_scores(page):
    set_part(page, "task", "0")
    set_part(page, "order", "difference")
    assert list_examples(page)[:6] == [f"grounding/e{n}" for n in (5, 10, 15, 20, 25, 1)]


@pytest.mark.parametrize("method", [1, 2])
def test_a_kept_overlay_matches_the_record(page, method):
    page.execute_script("document.querySelector('[data-part=boxes]').click()")
    for row in (1, 4):
        selector = (
            f"[data-example='grounding/e{row}'] [data-method='{browsed.METHODS[method]}'] canvas"
        )
        bright = page.execute_async_script(_READ_CELLS, selector, browsed.CELLS)
        kept = np.flatnonzero(np.asarray(bright) > 128).tolist()
        assert kept == browsed.keep(0, row, method)


def test_right_and_wrong_are_signs_and_words(page):
    marks = page.execute_script(
        "return [...document.querySelectorAll(\"[data-example='grounding/e5'] .mark\")]"
        ".map(x => x.textContent)"
    )
    assert marks == ["✓ right", "✗ wrong", "✓ right"]


def test_the_keyboard_moves_through_examples_and_pages(page):
    from selenium.webdriver.common.keys import Keys

    focused = "return document.activeElement.dataset.example"
    page.execute_script("document.querySelector('#answers [data-part=next]').focus()")
    press(page, Keys.TAB)
    assert page.execute_script(focused) == "grounding/e1"
    press(page, Keys.ARROW_DOWN)
    assert page.execute_script(focused) == "grounding/e2"
    assert page.current_url.endswith("#example=grounding%2Fe2")
    press(page, "j", "k", Keys.PAGE_DOWN)
    assert page.execute_script(focused) == "grounding/e21"
    assert read_status(page).endswith("page 2 of 3")
    press(page, Keys.END)
    assert page.execute_script(focused) == f"colour/e{browsed.ROWS}"
    press(page, Keys.HOME, Keys.ARROW_UP)
    assert page.execute_script(focused) == "grounding/e1"
    # keys of a select stay its own
    page.execute_script("document.querySelector('#answers [data-part=task]').focus()")
    press(page, Keys.ARROW_DOWN)
    assert list_examples(page)[0].startswith("grounding/")


def test_an_address_opens_its_example(page, folder):
    page.get("about:blank")
    page.get((folder / "report.html").as_uri() + "#example=colour%2Fe20")
    focused = "return document.activeElement.dataset.example"
    assert page.execute_script(focused) == "colour/e20"
    set_part(page, "task", "0")  # hides it, but a link shows what it names
    page.execute_script("location.hash = '#example=colour%2Fe3'")
    page.execute_async_script("setTimeout(arguments[0], 100)")
    assert page.execute_script(focused) == "colour/e3"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(page, axe, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.execute_script(axe)
    found = page.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
    assert len(found["passes"]) > 10  # it has looked
    serious = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"][:3]])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_two_thousand_examples_of_twelve_methods_stay_fluid(chromium, folder):
    """The page is filtered, sorted and drawn again within what feels immediate."""
    results = browsed.read_results(folder)
    records = [*results.records, *results.failed]
    pictures = thumbnails.collect(folder, results.meta, records)
    (small,) = browser.make_pages(results, pictures)
    data = json.loads(small.data)
    data["methods"] = [{"name": f"m{n}", "spec": f"m{n}"} for n in range(12)]
    for example in data["examples"]:
        example["answers"] = (example["answers"] * 4)[:12]
    data["examples"] = [{**data["examples"][n % 50], "id": f"x{n}"} for n in range(2000)]
    text = (folder / "report.html").read_text()
    large = folder / "large.html"
    large.write_text(text.replace(small.data, browser.write_json(data)))
    chromium.get(large.as_uri())
    assert read_status(chromium).startswith("2000 of 2000 examples")
    measure = f"const start = performance.now(); {_SET} return performance.now() - start;"
    took = [
        chromium.execute_script(f"return (function () {{ {measure} }})(...arguments)", name, value)
        for _ in range(3)
        for name, value in [("filter", "disagree"), ("order", "spread"), ("filter", "all")]
    ]
    print(f"ms to filter or sort: median {np.median(took):.0f}, worst {max(took):.0f}")
    assert np.median(took) < 500  # of a busy machine; tens on an idle one
