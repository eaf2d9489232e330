"""The inspector as a page of this machine: a picture and a question in, the same page out.

It listens on 127.0.0.1 alone, answers nobody who calls it by another name or from another page, and
keeps nothing.
"""

import logging
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")
_MOST_BYTES = 64 << 20  # of an upload
_EXTRA = "ivc-jax inspect --serve needs Flask: pip install 'ivc_jax[serve]'"
Answer = Callable[[bytes, str, str, str], str]  # picture, prompt, method, ratio -> page


def check_server(arguments: Any) -> None:
    """Refuse what cannot be served, before a model is loaded.

    Raises:
        ValueError: options that a served page has no use for, or a port that is none.
        ImportError: Flask is not installed.
        OSError: the port is taken.
    """
    if arguments.image is not None:
        raise ValueError("--serve takes its pictures from the page: leave out the image")
    if not 0 <= arguments.port < 1 << 16:
        raise ValueError(f"port must be in [0, 65535], got {arguments.port}")
    _import_flask()
    _check_port(arguments.port)


def serve(inspector: Any, methods: list[Any], arguments: Any, console: Console) -> None:
    """Serve until Ctrl-C.

    Args:
        inspector: `ivc_jax.studies.inspection.prompt.Inspector`.
        methods: shown beside the one that is asked for.
        arguments: of the command.
        console: where to say where the page is.
    """
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request is too much
    app = make_app(make_answer(inspector, methods, arguments.run), arguments.run.prompt or "")
    # several threads: a browser opens connections that it may never use
    server = make_server(_HOST, arguments.port, app, threaded=True)
    console.print(
        f"inspector: http://{_HOST}:{server.server_port}/ (Ctrl-C ends it)",
        markup=False,
        highlight=False,
    )
    sys.stdout.flush()
    try:
        server.serve_forever()
    finally:
        server.server_close()


def make_answer(inspector: Any, others: list[Any], run: Any) -> Answer:
    """Return what turns a picture, a prompt, a method and a ratio into a page.

    Args:
        inspector: asks the model.
        others: methods shown beside it.
        run: options of the command; times are not shown.
    """
    import ivc_jax
    from ivc_jax.engine.plan import make_plan
    from ivc_jax.inputs.picture import load_picture
    from ivc_jax.reports.inspector import render
    from ivc_jax.studies.inspection.prompt import Prompt

    busy = threading.Lock()  # one model, one question at a time

    def answer(content: bytes, prompt: str, spec: str, ratio: str) -> str:
        method = choose_method(spec, ratio)
        config = inspector.model.config
        make_plan(config.decoder.num_layers, method.resolve(config))
        picture = load_picture(content, "picture")
        asked = Prompt(prompt.strip() or "What is in this picture?", (picture,))
        methods = list(dict.fromkeys([method, *others]))
        with busy:
            found = inspector.inspect(asked, methods, run.max_new_tokens)
        names = list(ivc_jax.methods.METHODS)
        form = {"prompt": prompt, "method": spec, "ratio": ratio, "methods": names, "error": ""}
        return render(found, form)

    return answer


def choose_method(spec: str, ratio: str) -> Any:
    """Return the method of a specification at a keep ratio, or at a budget where it has no ratio.

    Args:
        spec: such as "ivc:layer=3".
        ratio: a number, or "" for the method's own.

    Raises:
        ValueError: an unknown method, or a ratio that it cannot take.
    """
    import ivc_jax
    from ivc_jax.methods.modifier import unwrap
    from ivc_jax.studies.inspection.grid import with_values

    if ".py" in spec:
        raise ValueError("a page takes no method from a file: give it to the command as --plugin")
    method = ivc_jax.methods.parse(spec.strip())
    fields = vars(unwrap(method)[-1])
    name = next((name for name in ("keep_ratio", "budget") if name in fields), None)
    if not ratio.strip() or name is None:
        return method
    try:
        share = float(ratio)
    except ValueError:
        raise ValueError(f"keep ratio {ratio!r} is no number") from None
    return with_values(method, **{name: share})


def make_app(answer: Answer, prompt: str = "", method: str = "ivc", ratio: str = "0.5") -> Any:
    """Make the WSGI application.

    Args:
        answer: makes a page, or raises a ValueError that says what is wrong.
        prompt: that stands in the form at first; so do method and ratio.
        method: specification.
        ratio: keep ratio.
    """
    import ivc_jax
    from ivc_jax.reports.inspector import render_form

    flask = _import_flask()
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MOST_BYTES
    usual = {"prompt": prompt, "method": method, "ratio": ratio}

    def ask_again(given: Mapping[str, str], error: str, code: int) -> tuple[str, int]:
        names = list(ivc_jax.methods.METHODS)
        shown = {**usual, **given, "methods": names, "error": " ".join(error.split())}
        return render_form(shown), code

    @app.before_request
    def check_caller() -> Any:
        # a foreign name that leads here, or a page of elsewhere that sends a form
        host, origin = flask.request.host, flask.request.headers.get("Origin")
        if host.partition(":")[0] in _NAMES and origin in (None, f"http://{host}"):
            return None
        return "this page is for this machine alone", 403

    @app.get("/")
    def show_form() -> Any:
        return ask_again({}, "", 200)

    @app.post("/")
    def show_answer() -> Any:
        given = {name: flask.request.form.get(name, usual[name]) for name in usual}
        upload = flask.request.files.get("image")
        content = upload.read() if upload else b""
        if not content:
            return ask_again(given, "choose a picture: none came, or an empty one", 400)
        try:
            return answer(content, given["prompt"], given["method"], given["ratio"])
        except ValueError as error:
            return ask_again(given, str(error), 400)

    @app.errorhandler(413)
    def refuse(_error: Any) -> Any:
        return ask_again({}, f"the upload is larger than {_MOST_BYTES >> 20} MB", 413)

    return app


def _import_flask() -> Any:
    try:
        import flask
    except ImportError:
        raise ImportError(_EXTRA) from None
    return flask


def _check_port(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError as error:
            raise OSError(
                f"port {port} cannot be had ({error.strerror}); --port 0 takes a free one"
            ) from None
