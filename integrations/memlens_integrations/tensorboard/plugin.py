"""What TensorBoard loads: routes for the pages' files and questions.

An import that fails here would end TensorBoard itself. So this module imports nothing of memlens, which
is loaded when it is first needed; if it can not be, the tab says why, and all else goes on.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import werkzeug
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin

__all__ = ["MemoryPlugin"]

_log = logging.getLogger(__name__)

QUESTIONS = (
    "runs",
    "timeline",
    "alive",
    "modules",
    "lifetimes",
    "steps",
    "ranks",
    "overlay",
    "difference",
)
"""Those of `memlens.web.questions`, which may not be there to ask."""
STATIC = "/static/"
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
    ".txt": "text/plain",
}
_HEADERS = [
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'self'"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
"""Of answers that are no pages: nothing in them is to be run, wherever they are opened."""
_WITHOUT_PAGES = """
export function render() {
  document.body.textContent = "memlens: the pages are missing; install it again";
}
"""

Application = Callable[..., Any]


class MemoryPlugin(base_plugin.TBPlugin):  # type: ignore[misc]
    """One per TensorBoard.

    Args:
        context: what TensorBoard was started with.
    """

    plugin_name = "memlens"

    def __init__(self, context: base_plugin.TBContext) -> None:
        super().__init__(context)
        self._context = context
        self._library: Any = None
        self._answer: Any = None
        self._fault: str | None = None
        self._lock = threading.Lock()
        self._static = _static_files()
        threading.Thread(target=self._load, name="memlens-load", daemon=True).start()

    def _load(self) -> bool:
        """Import memlens and look for runs, once; False: it can not be done."""
        with self._lock:
            if self._library is None and self._fault is None:
                try:
                    from memlens.web.library import Library
                    from memlens.web.questions import answer
                    from memlens_integrations.tensorboard.places import places_of

                    library = Library(places_of(self._context))
                    library.search()
                    self._library, self._answer = library, answer
                except Exception as error:  # whatever a broken installation raises
                    self._fault = f"memlens can not be loaded: {type(error).__name__}: {error}"[
                        :500
                    ]
                    _log.warning(self._fault)
            return self._fault is None

    # -- what TensorBoard asks -----------------------------------------------------------------

    def get_plugin_apps(self) -> dict[str, Application]:
        """A route for each question and each file; there are no others."""
        routes: dict[str, Application] = {f"/{name}": self._question(name) for name in QUESTIONS}
        routes[f"{STATIC}index.js"] = _missing
        for name, (path, content_type) in self._static.items():
            routes[STATIC + name] = _file(path, content_type)
        return routes

    def is_active(self) -> bool:
        """There are runs, or something is wrong that the tab has to tell."""
        if self._fault is not None:
            return True
        return self._library is not None and bool(self._library.has_runs)

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """How the tab is called, and which script fills it."""
        return base_plugin.FrontendMetadata(
            es_module_path=f"{STATIC}index.js", tab_name="Memory", disable_reload=False
        )

    # -- routes --------------------------------------------------------------------------------

    def _question(self, name: str) -> Application:
        @werkzeug.wrappers.Request.application
        def application(request: werkzeug.wrappers.Request) -> werkzeug.wrappers.Response:
            if request.method not in ("GET", "HEAD"):
                return _respond(request, 405, _error("only GET is answered here"))
            if not self._load():
                return _respond(request, 500, _error(str(self._fault)))
            given = request.args.to_dict(flat=False)
            if any(len(values) > 1 for values in given.values()):
                return _respond(request, 400, _error("a parameter is given twice"))
            flat = {key: values[0] for key, values in given.items()}
            return _respond(request, *self._answer(self._library, name, flat))

        return application


def _file(path: Path, content_type: str) -> Application:
    @werkzeug.wrappers.Request.application
    def application(request: werkzeug.wrappers.Request) -> werkzeug.wrappers.Response:
        try:
            content = path.read_bytes()
        except OSError:
            return _respond(request, 404, _error("this file is gone"))
        return _respond(request, 200, content, content_type)

    return application


@werkzeug.wrappers.Request.application
def _missing(request: werkzeug.wrappers.Request) -> werkzeug.wrappers.Response:
    return _respond(request, 200, _WITHOUT_PAGES.encode("ascii"), "text/javascript")


def _respond(
    request: werkzeug.wrappers.Request,
    status: int,
    content: bytes,
    content_type: str = "application/json",
) -> werkzeug.wrappers.Response:
    response: werkzeug.wrappers.Response = http_util.Respond(
        request, content, content_type, code=status, headers=list(_HEADERS)
    )
    return response


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode("ascii")


def _static_files() -> dict[str, tuple[Path, str]]:
    """The pages' files by the end of their address, with their types; memlens is not imported."""
    try:
        spec = importlib.util.find_spec("memlens")
    except Exception:  # whatever a broken installation raises
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return {}
    folder = Path(next(iter(spec.submodule_search_locations))) / "web" / "static"
    return {
        path.relative_to(folder).as_posix(): (path, _TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in _TYPES and path.is_file()
    }
