"""A headless Chromium, where there is one."""

import json
import os
import pathlib
import shutil
import tarfile

import pytest


@pytest.fixture(scope="session")
def chromium():
    """A WebDriver that logs what pages print and fetch; tests are skipped without one."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no chromium with chromium-driver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1400,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="session")
def axe():
    """The script of axe-core: AXE_CORE names its axe.min.js or the archive of `npm pack`."""
    path = pathlib.Path(os.environ.get("AXE_CORE", ""))
    if not path.is_file():
        pytest.skip("AXE_CORE names no axe.min.js and no archive of `npm pack axe-core`")
    if path.suffix == ".js":
        return path.read_text()
    with tarfile.open(path) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def read_requests(driver):
    """The addresses that pages have asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
