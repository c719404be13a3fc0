"""What TensorBoard loads when it starts: the "Gradient health" tab, without anything of gradwatch itself.

Importing gradwatch imports torch. Nobody who starts TensorBoard should wait for that, and nothing that goes wrong with it may keep
TensorBoard from starting: an exception in an entry point would. So this module stands beside the package, and reaches into it when
the tab asks for data for the first time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tensorboard import context as tensorboard_context
from tensorboard.backend import experiment_id, http_util
from tensorboard.plugins import base_plugin

log = logging.getLogger("gradwatch")

NAME = "gradwatch"

SAMPLES = 5000
"""Records that TensorBoard keeps of a run, unless ``--samples_per_plugin gradwatch=...`` says otherwise. Without a number it would
keep 100, or 10; and without a bound a long run would fill the memory."""

ROUTES = ("runs", "layout", "table", "incidents", "loss", "series", "grid")
"""What the page asks for; ``gradwatch.tensorboard_plugin.routes`` answers."""

TYPES = {".js": "text/javascript", ".css": "text/css"}
"""Of the files that are served, and no others are."""


class Loader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """The entry point ``tensorboard_plugins``."""

    def fix_flags(self, flags: Any) -> None:
        """Bounds how many records TensorBoard keeps, before either of its loaders is built."""
        hint = getattr(flags, "samples_per_plugin", None)
        if isinstance(hint, dict):
            hint.setdefault(NAME, SAMPLES)

    def load(self, context: base_plugin.TBContext) -> GradientHealth:
        """Makes the plugin."""
        return GradientHealth(context)


class GradientHealth(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """Serves the page's files, and hands its questions on."""

    plugin_name = NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._limit = (getattr(context, "sampling_hints", None) or {}).get(NAME, 0)
        self._files = _files()
        self._reader: Any = None
        self._lock = threading.Lock()

    def get_plugin_apps(self) -> dict[str, Any]:
        """Route → WSGI application."""
        files = {f"/{name}": _app(partial(self._file, name)) for name in self._files}
        return files | {f"/{route}": _app(partial(self._data, route)) for route in ROUTES}

    def is_active(self) -> bool:
        """No: TensorBoard itself knows which plugins its runs have data for, and asking twice would cost."""
        return False

    def _prepare(self) -> None:
        with contextlib.suppress(Exception):  # what goes wrong is told to whoever asks for data
            if NAME in (self._provider.list_plugins(tensorboard_context.RequestContext(), experiment_id="") or ()):
                _import()

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The name of the tab, and its module."""
        # This is asked when a page opens. By the time that somebody has found the tab, torch is imported.
        threading.Thread(target=self._prepare, daemon=True).start()
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Gradient health")

    def _file(self, name: str, request: Any) -> Any:
        path = self._files[name]
        return http_util.Respond(request, path.read_bytes(), TYPES[path.suffix])

    def _data(self, route: str, request: Any) -> Any:
        provider, routes = _import()
        with self._lock:
            self._reader = self._reader or provider.Reader(self._provider, self._limit)
        asker = tensorboard_context.from_environ(request.environ)
        scope = provider.Scope(asker, request.environ.get(experiment_id.WSGI_ENVIRON_KEY, ""))
        status, content_type, content = routes.answer(self._reader, scope, route, request.args)
        return http_util.Respond(request, content, content_type, code=status.value)


def _import() -> tuple[Any, Any]:
    """The modules that answer, which import torch."""
    from gradwatch.tensorboard_plugin import provider, routes

    return provider, routes


def _files() -> dict[str, Path]:
    """The page's files by name. The package is found, but not imported."""
    package = importlib.util.find_spec("gradwatch")
    places = list(package.submodule_search_locations or ()) if package else []
    folders = [Path(place) / "tensorboard_plugin" / "static" for place in places]
    return {path.name: path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in TYPES}


def _app(serve: Callable[[Any], Any]) -> Any:
    """A WSGI application that answers GET only, and every error with a sentence."""
    from werkzeug import wrappers

    @wrappers.Request.application
    def app(request: Any) -> Any:
        if request.method != "GET":
            content = json.dumps({"error": f"the method is {request.method}, and only GET is answered"})
            return http_util.Respond(request, content, "application/json", code=405, headers=[("Allow", "GET")])
        try:
            return serve(request)
        except Exception as error:
            log.exception("the Gradient health tab could not answer %s", request.path)
            content = json.dumps(
                {"error": f"gradwatch could not answer, and TensorBoard's log says where: {type(error).__name__}: {error}"}
            )
            return http_util.Respond(request, content, "application/json", code=500)

    return app
