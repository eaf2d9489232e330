"""The served inspector: uploads, refusals in one line, callers from elsewhere, Ctrl-C."""

import builtins
import html
import io
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

import ivc_jax
from ivc_jax.commands import inspect as command
from ivc_jax.commands import inspect_server
from ivc_jax.methods import parse
from ivc_jax.studies.inspection import grid
from ivc_jax.studies.inspection.prompt import Inspector

pytest.importorskip("flask", reason="the extra serve is not installed")
STARTED = """
import sys
from ivc_jax.commands import main
sys.argv[1:] = {arguments!r}
sys.exit(main.start())
"""


def make_picture():
    draw = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (40, 56, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(tiny_hf):
    model, processor = ivc_jax.load(tiny_hf(), dtype="float32")
    inspector = Inspector(model, processor, "tiny")
    run = command.RunOptions(max_new_tokens=1)
    answer = inspect_server.make_answer(inspector, [parse("dense")], run)
    return inspect_server.make_app(answer, "What is it?").test_client()


def send(client, content, name="a.png", headers=None, **fields):
    data = {"prompt": "Why?", "method": "ivc", "ratio": "0.5", **fields}
    data["image"] = (io.BytesIO(content), name)
    return client.post("/", data=data, headers=headers)


def read_error(response):
    (line,) = re.findall(r'<p class="error" role="alert">(.*?)</p>', response.text)
    return html.unescape(line)


def test_a_picture_is_answered_with_the_inspector(client, monkeypatch):
    monkeypatch.setattr(grid, "RATIOS", (0.5, 1.0))
    form = client.get("/").text
    assert "form-action 'self'" in form
    assert 'value="What is it?"' in form
    response = send(client, make_picture(), ratio="0.25")
    assert response.status_code == 200
    assert "ivc:keep_ratio=0.25" in response.text
    assert "9 of 35" in response.text  # a quarter of 35 cells of 8 pixels
    assert "35 of 35" in response.text  # dense beside it
    assert " ms</td>" not in response.text
    assert 'id="inspector-data"' in response.text
    assert 'name="ratio" value="0.25"' in response.text  # to ask again


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (b"", {}, "choose a picture: none came, or an empty one"),
        (b"no picture", {}, "picture: it is not an image; use PNG, JPEG or another"),
        (make_picture()[:200], {}, "picture cannot be read"),
        (make_picture(), {"method": "prune<b>"}, "unknown method 'prune<b>'"),
        (make_picture(), {"method": "ivc:layer=99"}, "layer=99 is outside the model"),
        (make_picture(), {"method": "own.py:Own"}, "takes no method from a file"),
        (make_picture(), {"ratio": "much"}, "keep ratio 'much' is no number"),
        (make_picture(), {"ratio": "1.5"}, "keep_ratio must be in (0, 1], got 1.5"),
    ],
)
def test_refusals_are_one_line_on_the_page(client, content, fields, message):
    response = send(client, content, **fields)
    assert response.status_code == 400
    error = read_error(response)
    assert message in error
    assert "\n" not in error
    if "method" in fields:  # what was asked stands in the form
        assert f'name="method" value="{html.escape(fields["method"])}"' in response.text


def test_large_uploads_are_refused(client):
    client.application.config["MAX_CONTENT_LENGTH"] = 1000
    try:
        response = send(client, make_picture())
    finally:
        client.application.config["MAX_CONTENT_LENGTH"] = 64 << 20
    assert response.status_code == 413
    assert read_error(response) == "the upload is larger than 64 MB"


@pytest.mark.parametrize(
    "headers", [{"Host": "elsewhere.example"}, {"Origin": "http://elsewhere.example"}]
)
def test_callers_from_elsewhere_are_refused(client, headers):
    assert send(client, make_picture(), headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("spec", "ratio", "method"),
    [
        ("ivc:layer=2", "0.25", "ivc:layer=2,keep_ratio=0.25"),
        ("ivc", "", "ivc"),
        ("fastv+ivc:budget=0.5", "0.3", "fastv+ivc:keep_ratio=0.3"),
        ("pyramiddrop", "0.5", "pyramiddrop:keep_ratio=0.5"),
        ("dense", "0.5", "dense"),
    ],
)
def test_a_ratio_is_what_the_method_has(spec, ratio, method):
    assert inspect_server.choose_method(spec, ratio) == parse(method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.png"], "leave out the image"),
        (["--port", "70000"], "port must be in [0, 65535]"),
    ],
)
def test_wrong_options_end_before_a_model_is_loaded(options, message, capsys):
    assert command.main(["--serve", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_and_a_missing_extra_are_one_line(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert command.main(["--serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0 takes a free one" in capsys.readouterr().err
    usual = builtins.__import__

    def refuse(name, *rest):
        if name == "flask":
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert command.main(["--serve"]) == 2
    assert capsys.readouterr().err == (
        "error: ivc-jax inspect --serve needs Flask: pip install 'ivc_jax[serve]'\n"
    )


def test_ctrl_c_ends_the_server(tiny_hf):
    arguments = ["inspect", "--serve", "--port", "0", "--model", str(tiny_hf())]
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED.format(arguments=arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = iter(process.stdout.readline, "")
    address = next(found[0] for line in lines if (found := re.findall(r"http://\S+", line)))
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=60) as response:
        assert "Choose a picture and a question" in response.read().decode()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1] == "interrupted"
