"""What the plugin answers to HTTP: the routes through werkzeug's client, with the Python loader; both loaders as processes."""

import json
import struct

import numpy as np
import pytest
import recorded_runs
from conftest import ODD_NAME
from serving import provider
from tensorboard import context
from tensorboard.plugins import base_plugin
from werkzeug.test import Client

import gradwatch_tensorboard
from gradwatch.report.recorded import of_history
from gradwatch.tensorboard_plugin import answers, cells
from gradwatch.tensorboard_plugin.shown import SHOWN


class Broken:
    """A data provider that fails, as one whose process has died."""

    def list_tensors(self, *args, **kwargs):
        raise RuntimeError("the data server is gone")


def plugin(data_provider, **settings):
    return gradwatch_tensorboard.Loader().load(base_plugin.TBContext(data_provider=data_provider, **settings))


class Served:
    """A plugin, asked as a browser asks it."""

    def __init__(self, made):
        self.apps = made.get_plugin_apps()

    def get(self, route, method="GET", **query):
        def app(environ, start):
            context.set_in_environ(environ, context.RequestContext())
            return self.apps[f"/{route}"](environ, start)

        return Client(app).open(f"/{route}", method=method, query_string=query)

    def error(self, route, **query):
        answer = self.get(route, **query)
        assert answer.content_type == "application/json"
        assert list(answer.json) == ["error"]
        return answer.status_code, answer.json["error"]


@pytest.fixture(scope="module")
def asked(logdir):
    return Served(plugin(provider(logdir)))


def unpacked(content):
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(content[4 : 4 + length])
    size = len(header["rows"]) * header["columns"]
    assert length % 4 == 0
    assert len(content) == 4 + length + 5 * size
    values = np.frombuffer(content, "<f4", size, 4 + length).reshape(len(header["rows"]), -1)
    flags = np.frombuffer(content, np.uint8, size, 4 + length + 4 * size).reshape(values.shape)
    return header, values, flags


def test_every_question_has_an_answer(asked):
    names = [run["name"] for run in asked.get("runs").json]
    assert [name for name in names if name in {ODD_NAME, "sick", "team/healthy"}] == [ODD_NAME, "sick", "team/healthy"]
    for route in ("layout", "table", "incidents", "loss"):
        answer = asked.get(route, run="sick")
        assert answer.status_code == 200
        assert answer.content_type == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.json == json.loads(json.dumps(getattr(answers, route)(of_history(recorded_runs.sick()))))
    assert asked.get("series", run="sick", layer="head").json["name"] == "head"


def test_a_grid_is_bytes(asked):
    answer = asked.get("grid", run="sick", statistic="gradient", width=6)
    assert answer.content_type == "application/octet-stream"
    header, values, flags = unpacked(answer.data)
    expected = answers.grid(of_history(recorded_runs.sick()), SHOWN["gradient"], first=None, last=None, width=6)
    assert header == {
        "rows": list(recorded_runs.SICK),
        "columns": 6,
        "steps": [0, 10, 20, 30, 40, 50],
        "last": [9, 19, 29, 39, 49, 59],
    }
    np.testing.assert_array_equal(values, expected.values)
    np.testing.assert_array_equal(flags, expected.flags)
    assert flags[1, 4] == cells.NAN


def test_a_grid_has_bounds_and_a_layer(asked):
    query = {"run": "sick", "statistic": "gradient", "from": 5, "to": 7}
    assert unpacked(asked.get("grid", **query).data)[0]["steps"] == [5, 6, 7]
    assert unpacked(asked.get("grid", layer="head", **query).data)[0]["rows"] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("route", "query", "status", "sentence"),
    [
        ("layout", {}, 400, "the request lacks 'run'"),
        ("layout", {"run": "../../etc"}, 404, "no run called '../../etc' holds anything of gradwatch"),
        ("series", {"run": "sick"}, 400, "the request lacks 'layer'"),
        ("series", {"run": "sick", "layer": "none"}, 404, "the run has no layer 'none'"),
        ("grid", {"run": "sick"}, 400, "the request lacks 'statistic'"),
        ("grid", {"run": "sick", "statistic": "x"}, 404, "there is no statistic 'x'; layout lists those of a run"),
        ("grid", {"run": "sick", "statistic": "gradient", "layer": "x"}, 404, "the run has no layer 'x'"),
        (
            "grid",
            {"run": "sick", "statistic": "gradient", "width": "0"},
            400,
            "'width' must be a whole number from 1 to 4096, and is '0'",
        ),
        ("grid", {"run": "sick", "statistic": "gradient", "width": "99999"}, 400, "and is '99999'"),
        ("grid", {"run": "sick", "statistic": "gradient", "from": "-1"}, 400, "and is '-1'"),
        ("grid", {"run": "sick", "statistic": "gradient", "to": "1e5"}, 400, "and is '1e5'"),
        ("grid", {"run": "sick", "statistic": "gradient", "to": "9" * 5000}, 400, "'to' must be a whole number"),
        ("grid", {"run": "sick", "statistic": "gradient", "from": "²"}, 400, "and is '²'"),
    ],
)
def test_what_has_no_meaning_is_refused_with_a_sentence(asked, route, query, status, sentence):
    code, told = asked.error(route, **query)
    assert code == status
    assert sentence in told


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("route", ["runs", "grid", "index.js"])
def test_only_get_is_answered(asked, route, method):
    answer = asked.get(route, method=method)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET"


def test_files_are_those_of_the_page_and_no_others(asked):
    files = {route for route in asked.apps if "." in route}
    assert {"/index.js", "/host.js", "/http.js", "/view.js", "/view.css"} <= files
    assert {route.rpartition(".")[2] for route in files} == {"js", "css"}
    assert not [route for route in files if route.count("/") > 1]
    for route, kind in (("index.js", "text/javascript; charset=utf-8"), ("view.css", "text/css; charset=utf-8")):
        answer = asked.get(route)
        assert answer.content_type == kind
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.data


def test_hostile_names_are_data(asked):
    told = asked.get("layout", run=ODD_NAME)
    assert told.json["layers"][0]["name"] == recorded_runs.HOSTILE
    for layer in told.json["layers"]:
        assert asked.get("series", run=ODD_NAME, layer=layer["name"]).json["name"] == layer["name"]
    code, sentence = asked.error("layout", run="<script>")
    assert (code, sentence) == (404, "no run called '<script>' holds anything of gradwatch")


def test_a_failure_is_answered_with_a_sentence_and_logged(caplog):
    code, sentence = Served(plugin(Broken())).error("runs")
    assert code == 500
    assert sentence.endswith("RuntimeError: the data server is gone")
    assert "could not answer /runs" in caplog.text


def test_both_loaders_tell_the_same_as_the_recording(served):
    run = of_history(recorded_runs.sick())
    for route in ("layout", "table", "incidents", "loss"):
        assert served.ask(route, run="sick") == json.loads(json.dumps(getattr(answers, route)(run)))
    assert served.ask("series", run="sick", layer="head") == json.loads(json.dumps(answers.series(run, run.layers[2])))
    status, headers, content = served.get("grid", run="sick", statistic="gradient")
    header, _, flags = unpacked(content)
    assert (status, headers["Content-Type"]) == (200, "application/octet-stream")
    assert header["steps"] == list(range(recorded_runs.STEPS))
    np.testing.assert_array_equal(flags, answers.grid(run, SHOWN["gradient"], first=None, last=None, width=1000).flags)


def test_tensorboard_serves_errors_as_they_are(served):
    status, headers, content = served.get("layout", run="nowhere")
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert json.loads(content) == {"error": "no run called 'nowhere' holds anything of gradwatch"}
    assert served.get("runs", method="POST")[0] == 405
    assert served.get("../../etc/passwd")[0] == 404
    assert served.get("provider.py")[0] == 404


def test_a_resumed_run_reads_the_same_under_both_loaders(served, logdir):
    folder = logdir / f"resumed-{'prefix' if 'team' in served.url else 'plain'}"
    recorded_runs.written(recorded_runs.healthy(steps=25), folder)
    again = [recorded_runs.record(step, recorded_runs.sites(["head"], full=False), rms=7.0) for step in range(14, 20)]
    recorded_runs.written(recorded_runs.history(again), folder)
    served.wait_for(folder.name, 19)
    header, values, _ = unpacked(served.get("grid", run=folder.name, statistic="gradient", layer="head")[2])
    assert header["steps"] == list(range(20))
    assert values[0].tolist() == [1.0] * 14 + [7.0] * 6
