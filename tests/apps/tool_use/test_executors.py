"""Executors: what tools return is observed, and so is every way in which they fail."""

from __future__ import annotations

import http.server
import json
import threading
import time

import pytest

from apps.tool_use.calls import Call
from apps.tool_use.executors import Http, Local, Recording, Replay, Sandboxed, Simulated
from apps.tool_use.executors.observation import WORDS, Executor, kept
from apps.tool_use.spec import ToolSpec
from core.errors import BackendUnavailable, ConfigError, DataError, SandboxError


def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


def fail(a: int) -> int:
    """Fails."""
    raise ValueError(f"no {a}")


def sleep(seconds: float) -> str:
    """Sleeps."""
    time.sleep(seconds)
    return "late"


NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def word(observation) -> str:
    return observation.word


# ---- local -------------------------------------------------------------------------------------------------------


def test_functions_of_this_process_run_only_when_declared_as_trusted():
    with pytest.raises(SandboxError, match="trusted=True"):
        Local([add])
    executor = Local([add, fail, sleep], trusted=True, timeout_s=0.2)
    assert executor.run(Call("add", {"a": 2})).text == "3"
    assert word(executor.run(Call("addd", {"a": 2}))) == "unknown function"
    assert "did you mean 'add'" in executor.run(Call("addd", {"a": 2})).text
    wrong = executor.run(Call("add", {"a": "two"}))
    assert word(wrong) == "bad arguments" and "/a" in wrong.text and "integer" in wrong.text
    failed = executor.run(Call("fail", {"a": 7}))
    assert word(failed) == "the request failed" and failed.text == "ValueError: no 7"
    late = executor.run(Call("sleep", {"seconds": 5}))
    assert word(late) == "timeout" and late.seconds < 2


def test_a_trusted_function_may_exit_or_wait_and_half_a_character_is_shown_escaped():
    def leaves() -> int:
        raise SystemExit(3)

    async def waits(x: int) -> int:
        return x + 1

    def halves() -> str:
        return "a\ud83d"

    executor = Local([leaves, waits, halves], trusted=True, timeout_s=5)
    left = executor.run(Call("leaves"))
    assert word(left) == "the request failed" and left.text == "SystemExit: 3" and left.seconds < 4
    assert executor.run(Call("waits", {"x": 1})).text == "2"
    assert executor.run(Call("halves")).text == "a\\ud83d"
    for functions, part in (([leaves, leaves], "two functions"), ([lambda: 1], "no function|two tools")):
        with pytest.raises((ConfigError, DataError), match=part):
            Local(functions, trusted=True, tools=[ToolSpec("leaves", "", {})])


def test_calls_made_at_once_keep_their_order_and_overlap():
    executor = Local([sleep, add], trusted=True)
    start = time.perf_counter()
    found = executor.run_all([Call("sleep", {"seconds": 0.3}), Call("sleep", {"seconds": 0.3}), Call("add", {"a": 1})])
    assert [o.text for o in found] == ["late", "late", "2"] and time.perf_counter() - start < 0.58


def test_a_tool_without_a_function_and_a_schema_that_is_none_are_told_before_any_call():
    with pytest.raises(ConfigError, match="no function is called 'other'"):
        Local([add], trusted=True, tools=[ToolSpec("other", "", NUMBER)])
    bad = ToolSpec("t", "", {"type": "object", "properties": {"a": {"type": "dict"}}})
    with pytest.raises(DataError, match="t#/properties/a/type"):
        Local([add], trusted=True, tools=[bad])
    with pytest.raises(DataError, match="schema of an object"):
        Executor([ToolSpec("t", "", {"type": "array"})])
    with pytest.raises(DataError, match="two tools are called 'add'"):
        Executor([add, add])
    with pytest.raises(ConfigError, match="did you mean 'add'"):
        Executor([add], keep={"ad": ["x"]})


class Told(Executor):
    """Returns what it was made with."""

    def __init__(self, value, **options):
        super().__init__([ToolSpec("f", "", {"type": "object", "properties": {}})], **options)
        self.value = value

    def _call(self, tool, arguments):
        return self.value


def test_observations_are_cut_filtered_and_read_for_errors():
    long = Told("x" * 3000).run(Call("f"))
    assert len(long.text) == 1024 and long.cut == 3000 - 1024
    assert word(Told({"error": "no key"}).run(Call("f"))) == "the tool reports an error"
    assert word(Told({"error": ""}).run(Call("f"))) == "ok"
    data = {"page": 1, "rows": [{"name": "A", "price": 3, "x": 0}, {"x": {"price": 4}}], "noise": [1, 2]}
    assert kept(data, ["price"]) == {"rows": [{"price": 3}, {"x": {"price": 4}}]}
    assert json.loads(Told(data, keep={"f": ["name"]}).run(Call("f")).text) == {"rows": [{"name": "A"}, {}]}


# ---- sandbox -----------------------------------------------------------------------------------------------------

SOURCE = """
import os, time
def add(a): return a + 1
def fail(a): return 1 // 0
def loop(a):
    while True: pass
def secrets(a): return sorted(os.environ) + os.listdir("/home") if os.path.exists("/home") else sorted(os.environ)
def hog(a): return len("x" * (4 << 30))
"""


def test_code_of_others_runs_in_the_sandbox_and_its_failures_are_observed(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "1")
    tools = [ToolSpec(name, "", NUMBER) for name in ("add", "fail", "loop", "secrets", "hog")]
    with Sandboxed(SOURCE, tools, timeout_s=1) as executor:
        assert executor.box.level == "strict"
        assert executor.run(Call("add", {"a": 2})).text == "3"
        assert "ZeroDivisionError" in executor.run(Call("fail", {"a": 2})).text
        assert word(executor.run(Call("loop", {"a": 2}))) == "timeout"
        assert executor.run(Call("add", {"a": 3})).text == "4", "the next call starts a new interpreter"
        assert "MY_SECRET" not in executor.run(Call("secrets", {"a": 1})).text
        assert not executor.run(Call("hog", {"a": 1})).ok
    with pytest.raises(SandboxError, match="the source fails: SyntaxError"):
        Sandboxed("def f(:", tools[:1])
    with pytest.raises(ConfigError, match="defines no function 'add'"):
        Sandboxed("def sub(a): return a", tools[:1])


def test_a_parameter_may_be_called_like_anything():
    tool = ToolSpec("f", "", {"type": "object", "properties": {"timeout_s": {}, "function": {}, "self": {}}})
    with Sandboxed("def f(timeout_s, function, self): return [timeout_s, function, self]", [tool]) as executor:
        assert executor.run(Call("f", {"timeout_s": 1, "function": 2, "self": 3})).text == "[1, 2, 3]"


# ---- HTTP --------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """A small service that shows what it was asked, fails as told and sends one away."""

    def do_GET(self):
        if self.path.startswith("/status/"):
            self.send_error(int(self.path.rsplit("/", 1)[1].partition("?")[0]))
        elif self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "http://example.invalid/stolen")
            self.end_headers()
        elif self.path.startswith("/slow"):
            time.sleep(1.5)
            self.answer({})
        elif self.path.startswith("/drip"):
            self.send_response(200)
            self.end_headers()
            for _ in range(40):
                try:
                    self.wfile.write(b"x")
                    time.sleep(0.2)
                except OSError:
                    return
        else:
            self.answer({"path": self.path, "key": self.headers.get("X-Key"), "trace": self.headers.get("trace")})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"path": self.path, "body": body})

    def answer(self, value):
        data = json.dumps(value).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def server(request):
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{served.server_port}"
    served.shutdown()


def parameter(name, place, **schema):
    return {"name": name, "in": place, "schema": schema or {"type": "string"}}


def json_body(schema):
    return {"content": {"application/json": {"schema": schema}}}


DOCUMENT = {
    "openapi": "3.0.0",
    "paths": {
        "/pets/{id}": {
            "get": {
                "operationId": "pet",
                "parameters": [
                    parameter("id", "path"), parameter("tag", "query", type="array"), parameter("trace", "header"),
                ],
            },
            "post": {
                "operationId": "feed",
                "parameters": [parameter("id", "path")],
                "requestBody": {"content": {"application/json": {"schema": {
                    "type": "object", "properties": {"grams": {"type": "number"}}, "required": ["grams"]}}}},
            },
        },
        "/status/{code}": {"get": {"operationId": "status", "parameters": [parameter("code", "path", type="integer")]}},
        "/away": {"get": {"operationId": "away"}},
        "/slow": {"get": {"operationId": "slow"}},
    },
}  # fmt: skip


def test_arguments_go_where_the_document_puts_them(server):
    executor = Http(DOCUMENT, base=f"http://{server}", allow=[server], headers={"X-Key": "k"})
    seen = json.loads(executor.run(Call("pet", {"id": "a/b c", "tag": ["x", "y&"], "trace": "t\r\nEvil: 1"})).text)
    assert seen == {"path": "/pets/a%2Fb%20c?tag=x&tag=y%26", "key": "k", "trace": "t  Evil: 1"}
    seen = json.loads(executor.run(Call("feed", {"id": "3", "grams": 2.5})).text)
    assert seen == {"path": "/pets/3", "body": {"grams": 2.5}}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (404, "not found"),
        (401, "unauthorised"),
        (403, "not subscribed"),
        (429, "rate limit"),
        (500, "the request failed"),
    ],
)
def test_status_codes_are_observed(server, code, expected):
    observation = Http(DOCUMENT, base=f"http://{server}", allow=[server]).run(Call("status", {"code": code}))
    assert word(observation) == expected and str(code) in observation.text


def test_only_named_hosts_are_reached(server):
    with pytest.raises(ConfigError, match="not allowed"):
        Http(DOCUMENT, base=f"http://{server}", allow=["127.0.0.1"])
    with pytest.raises(ConfigError, match="not allowed"):
        Http(DOCUMENT, base="file:///etc/passwd", allow=["", server])
    with pytest.raises(ConfigError, match="names no server"):
        Http(DOCUMENT, allow=[server])
    away = Http(DOCUMENT, base=f"http://{server}", allow=[server]).run(Call("away"))
    assert word(away) == "the request failed" and "'example.invalid' is not allowed" in away.text


def test_an_argument_may_stand_in_two_places_in_a_cookie_or_be_the_body(server):
    paths = {
        "/two/{id}": {"post": {"operationId": "two", "parameters": [parameter("id", "path"), parameter("c", "cookie")],
                               "requestBody": json_body({"properties": {"id": {"type": "string"}}})}},
        "/list": {"post": {"operationId": "list", "requestBody": json_body({"type": "array"})}},
        "/form": {"post": {"operationId": "form", "requestBody": {"content": {"multipart/form-data": {
            "schema": {"properties": {"a": {"type": "string"}}}}}}}},
        "/odd path": {"get": {"operationId": "odd"}},
    }  # fmt: skip
    executor = Http({"paths": paths}, base=f"http://{server}", allow=[server])
    assert json.loads(executor.run(Call("two", {"id": "7"})).text) == {"path": "/two/7", "body": {"id": "7"}}
    assert executor.request(executor.tools[0], {"id": "7", "c": "a; b"}).get_header("Cookie") == "c=a%3B%20b"
    assert json.loads(executor.run(Call("list", {"body": [1]})).text) == {"path": "/list", "body": [1]}
    for call, part in (
        (Call("two", {"id": ".."}), "no part of a path"),
        (Call("form", {"a": "x"}), "multipart/form-data is not sent"),
        (Call("odd"), "The request failed"),
    ):
        assert part in executor.run(call).text
    with pytest.raises(ConfigError, match="list of hosts"):
        Http({"paths": paths}, base=f"http://{server}", allow=server)
    with pytest.raises(ConfigError, match="no address"):
        Http({"paths": paths}, base="http://[::1", allow=["a"])


def test_an_answer_that_drips_ends_with_the_time_of_the_call(server):
    start = time.perf_counter()
    drip = {"paths": {"/drip": {"get": {"operationId": "drip"}}}}
    assert word(Http(drip, base=f"http://{server}", allow=[server], timeout_s=0.5).run(Call("drip"))) == "timeout"
    assert time.perf_counter() - start < 3


def test_a_slow_or_absent_service_is_observed(server):
    assert word(Http(DOCUMENT, base=f"http://{server}", allow=[server], timeout_s=0.3).run(Call("slow"))) == "timeout"
    gone = Http(DOCUMENT, base="http://127.0.0.1:9", allow=["127.0.0.1:9"]).run(Call("slow"))
    assert word(gone) == "the request failed"


# ---- recordings and simulation -----------------------------------------------------------------------------------


def test_a_recording_gives_the_same_observations_in_the_same_order(tmp_path):
    count = iter(range(10))
    counting = Told("")
    counting._call = lambda tool, arguments: next(count)
    recording = Recording(counting, tmp_path / "r.jsonl")
    first = [recording.run(Call("f")), recording.run(Call("f", {"x": 1})), *recording.run_all([Call("f"), Call("g")])]
    replay = Replay(tmp_path / "r.jsonl")
    again = [replay.run(Call("f")), replay.run(Call("f", {"x": 1})), *replay.run_all([Call("f"), Call("g")])]
    assert [(o.text, o.status) for o in again] == [(o.text, o.status) for o in first]
    assert [o.text for o in first[:3]] == ["0", "1", "2"]
    with pytest.raises(BackendUnavailable, match="no recorded observation of f"):
        replay.run(Call("f", {"x": 2}))
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="bad.jsonl:1"):
        Replay(tmp_path / "bad.jsonl")
    with pytest.raises(BackendUnavailable, match="does not exist"):
        Replay(tmp_path / "none.jsonl")


def test_a_model_plays_a_tool_once_for_each_call(tmp_path):
    asked = []

    def model(prompt):
        asked.append(prompt)
        return ' {"temperature": 21} and more' if "Rome" in prompt else "It is warm."

    tool = ToolSpec("weather", "Weather of a city.", {"type": "object", "properties": {"city": {"type": "string"}}})
    executor = Simulated(model, [tool], cache=tmp_path / "c.jsonl")
    assert executor.run(Call("weather", {"city": "Rome"})).text == '{"temperature": 21}'
    assert word(executor.run(Call("weather", {"city": "Oslo"}))) == "the request failed"
    again = Simulated(model, [tool], cache=tmp_path / "c.jsonl")
    assert again.run(Call("weather", {"city": "Rome"})).text == '{"temperature": 21}' and len(asked) == 2
    assert "Weather of a city." in asked[0] and '{"city": "Rome"}' in asked[0]
    assert len(WORDS) == 13


def test_without_a_sandbox_it_says_what_to_install(monkeypatch):
    from core.execution import sandbox

    monkeypatch.setattr(sandbox, "probe_backend", lambda name: sandbox.Probe(name, "strict", False, "not here"))
    with pytest.raises(SandboxError, match="bubblewrap"):
        Sandboxed("def add(a): return a", [ToolSpec("add", "", NUMBER)])
