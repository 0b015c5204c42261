"""`python -m tests.gateway.fuzz [EXAMPLES]`: requests made of the gateway's own OpenAPI, and of what nobody would send.

Every answer must be one that the OpenAPI promises: its status, its type, its shape. None may be of 500 or above, for no backend
fails here; none of 400 or above may be long, or give back what was sent.
"""

import asyncio
import collections
import json
import string
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from clients.wire.catalogue import CatalogueHead
from gateway.app import create_api
from gateway.settings import Settings
from tests.gateway.fakes import FakeGateway, FakeTrunks, encoder, live, manifest, state_of

MAX_ERROR_BYTES = 2_048
MAX_ECHO_BYTES = 64

Schema = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One method of one path, as the OpenAPI tells it."""

    method: str
    path: str
    told: Schema


@dataclass(frozen=True)
class Sent:
    """A request."""

    operation: Operation
    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Page:
    """The OpenAPI: what there is, what may be sent there, whether an answer is as promised."""

    def __init__(self) -> None:
        self._whole: Schema = create_api().openapi()
        self.operations = [
            Operation(method.upper(), path, told)
            for path, methods in self._whole["paths"].items()
            for method, told in methods.items()
        ]

    def schema(self, schema: Schema) -> Schema:
        """*schema*, or what it refers to."""
        while "$ref" in schema:
            schema = self._whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def problems(self, value: Any, schema: Schema, at: str = "$") -> Iterator[str]:
        """Where *value* is not what *schema*, of the kinds that msgspec writes, says."""
        schema = self.schema(schema)
        if "anyOf" in schema:
            if all(any(self.problems(value, one)) for one in schema["anyOf"]):
                yield f"{at} is none of several"
            return
        if "enum" in schema and value not in schema["enum"]:
            yield f"{at} is not of the enum"
        kinds = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool}
        kinds["null"] = type(None)
        kind = schema.get("type")
        if kind is not None and (not isinstance(value, kinds[kind]) or (kind in {"number", "integer"} and value is True)):
            yield f"{at} is no {kind}"
        elif isinstance(value, dict):
            yield from self._object_problems(value, schema, at)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                yield from self.problems(one, schema.get("items", {}), f"{at}[{index}]")

    def _object_problems(self, value: dict[str, Any], schema: Schema, at: str) -> Iterator[str]:
        known = schema.get("properties", {})
        yield from (f"{at} lacks {name}" for name in schema.get("required", ()) if name not in value)
        rest = schema.get("additionalProperties", not known)
        for name, one in value.items():
            if name in known:
                yield from self.problems(one, known[name], f"{at}.{name}")
            elif rest is False or (rest is True and known):
                yield f"{at}.{name} is not told of"
            elif isinstance(rest, dict):
                yield from self.problems(one, rest, f"{at}.{name}")

    def values(self, schema: Schema) -> st.SearchStrategy[Any]:
        """What *schema* allows."""
        schema = self.schema(schema)
        if "anyOf" in schema:
            return st.one_of([self.values(one) for one in schema["anyOf"]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if schema.get("type") == "object":
            return self._objects(schema)
        if schema.get("type") == "array":
            least, most = schema.get("minItems", 0), min(schema.get("maxItems", 4), 4)
            return st.lists(self.values(schema.get("items", {})), min_size=least, max_size=most)
        return _plain(schema)

    def _objects(self, schema: Schema) -> st.SearchStrategy[Any]:
        known = {name: self.values(one) for name, one in schema.get("properties", {}).items()}
        if not known:
            return st.dictionaries(WORDS, self.values(schema.get("additionalProperties") or {}), max_size=2)
        required = {name: known.pop(name) for name in schema.get("required", ())}
        # Most optional fields left out: with all of them, nothing would ever be right.
        few = st.sets(st.sampled_from(sorted(known)), max_size=3) if known else st.just(set())
        return few.flatmap(lambda names: st.fixed_dictionaries({**required, **{name: known[name] for name in sorted(names)}}))


def _plain(schema: Schema) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", -(2**40)), schema.get("maximum", schema.get("exclusiveMaximum", 2**40) - 1)
    low = max(low, schema.get("exclusiveMinimum", low - 1) + 1)
    plain = {
        "string": WORDS.filter(lambda word: schema.get("minLength", 0) <= len(word) <= schema.get("maxLength", 10**9)),
        "integer": st.integers(int(low), int(high)),
        "number": st.floats(schema.get("minimum", -1e6), schema.get("maximum", 1e6)),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return plain.get(schema.get("type", ""), ANYTHING)


WORDS = st.one_of(
    st.sampled_from(["a", "a b", "spam", "tags", "spam@6", "text", "label", "news", "", " \n", "\u200b", "e\u0301", "x" * 300]),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
ODD_NAMES = ("..", "%2e%2e%2f", "%00", "a" * 4_096, "con", "a%0ab", "models%2Fx:predict", "%E2%88%95", "%FF", "@", "%20spam")
NAMES = st.one_of(
    st.sampled_from(["spam", "spam", "tags", "price", "none", "spam@6", "spam@stable", "spam@", f"spam@{2**63}"]),
    st.sampled_from(ODD_NAMES),
    st.text(string.ascii_letters + string.digits + "@._-", min_size=1, max_size=12),
)
VERSIONS = st.sampled_from(["6", "7", "-1", "0", "9223372036854775808", "1e3", "+1", "%201", "%C2%B3", "x", "7" * 500])
HEADERS = {
    "x-request-timeout-ms": ["1000", "0", "-1", "1e3", "\u00b3", "9" * 50, ""],
    "x-request-id": ["mine", "not a word", "x" * 500, "\u00ff"],
    "x-sticky-key": ["", "k", "k" * 2_000, "\u00ff"],
    "cache-control": ["no-store", "max-age=0", ",,,", "\u00ff"],
    "content-encoding": ["identity", "gzip", "br"],
    "inference-header-content-length": ["0", "3", "30", "-1", "x", "9" * 30, "\u00b2"],
    "content-type": ["application/json", "text/plain", "application/json; charset=utf-16"],
}
HOSTILE = {
    "empty": b"",
    "cut off": b'{"text": "a',
    "NaN": b'{"text": NaN, "input": NaN, "inputs": NaN}',
    "not finite": b'{"text": "a", "threshold": 1e400}',
    "huge number": b'{"text": "a", "inputs":"a","input": "a","top_k": %(n)s, "dimensions": %(n)s, "parameters": {"top_k": %(n)s}}'
    % {b"n": b"9" * 5_000},
    "UTF-8 with a mark": b"\xef\xbb\xbf" + b'{"text": "a", "input": "a", "inputs": "a"}',
    "UTF-16": '{"text": "a", "input": "a", "inputs": "a"}'.encode("utf-16"),
    "not UTF-8": b'{"text": "\xff", "input": "\xff", "inputs": "\xff"}',
    "lone surrogate": b'{"text": "\\ud800", "input": "\\ud800", "inputs": "\\udfff"}',
    "lone surrogate where it is no text": b'{"text": ["\\ud800"], "input": {"\\ud800": 1}, "inputs": {"a": "\\ud800"}}',
    "deep where it is read": b'{"texts":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep input": b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep inputs": b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep where it is skipped": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"text":"a","input":"a","inputs":"a"}',
    "deep objects": b'{"x":' * 50_000 + b"1" + b"}" * 50_000,
    "two documents": b'{"text": "a"} {"text": "b"}',
    "many keys": b"{" + b",".join(b'"SECRET%d": 1' % number for number in range(100_000)) + b"}",
    "wrong type": b'{"text": {"SECRET": 1}, "input": {"SECRET": 1}, "inputs": {"SECRET": 1}}',
    "a list": b'["' + b"SECRET" * 20 + b'"]',
    "a word": b'"' + b"SECRET" * 20 + b'"',
    "zeros": b"\0" * 1_000,
    "a long word": b'{"texts": [3, "' + b"a" * 100_000 + b'"], "input": {}, "inputs": {}}',
}


def sent_to(page: Page, operation: Operation) -> st.SearchStrategy[Sent]:
    """Requests to *operation*: as told, nearly so, and not at all so."""
    bodies: st.SearchStrategy[bytes] = st.just(b"")
    if "requestBody" in operation.told:
        [told] = operation.told["requestBody"]["content"].values()
        values = page.values(told["schema"])
        as_told = st.one_of(values, values.map(likelier)).map(written)
        several = st.lists(st.one_of(as_told, ANYTHING.map(written), st.binary(max_size=20)), max_size=4).map(b"\n".join)
        hostile = st.sampled_from(sorted(HOSTILE.values()))
        bodies = st.one_of(as_told, as_told, as_told, st.builds(_spoilt, as_told, st.integers(0, 10**6), st.binary(max_size=3)))
        bodies = st.one_of(bodies, bodies, several, ANYTHING.map(written), hostile)
    headers = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in HEADERS.items()})
    queries = st.sampled_from(["", "", "", "start=3", "start=-1", "start=x", "start=1&start=2", "%FF", "a" * 5_000])
    paths = st.builds(lambda name, version: operation.path.replace("{name}", name).replace("{version}", version), NAMES, VERSIONS)
    return st.builds(Sent, st.just(operation), paths, queries, st.one_of(st.just({}), headers), bodies)


def likelier(value: Any) -> Any:
    """*value* with what no schema tells put right: one of text and texts, known heads, a tensor's shape."""
    if not isinstance(value, dict):
        return value
    value = {name: one for name, one in value.items() if name not in {"texts", "heads", "tags", "outputs"}}
    if "text" in value or ("inputs" not in value and "input" not in value):
        value["text"] = "a b"
    if isinstance(value.get("inputs"), list):
        value["inputs"] = [
            {**one, "data": ["a", "b c"], "shape": [2], "parameters": None} if isinstance(one, dict) else one
            for one in value["inputs"]
        ]
    return value


def written(value: Any) -> bytes:
    """As JSON."""
    return json.dumps(value).encode()


def _spoilt(content: bytes, at: int, put: bytes) -> bytes:
    place = at % (len(content) + 1)
    return content[:place] + put + content[place + 1 :]


async def exchange(app: Any, sent: Sent) -> Got:
    """What *app*, an ASGI application, answers; whatever it raises."""
    pieces = [
        {"type": "http.request", "body": sent.body, "more_body": False},
        {"type": "http.disconnect"},
    ]
    said: list[Mapping[str, Any]] = []
    over = asyncio.Event()

    async def receive() -> Mapping[str, Any]:
        if len(pieces) == 1:
            await over.wait()
            return pieces[0]
        return pieces.pop(0)

    async def send(message: Mapping[str, Any]) -> None:
        said.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            over.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": sent.operation.method,
        "scheme": "http",
        "path": unquote_to_bytes(sent.path).decode("utf-8", "replace"),
        "raw_path": sent.path.encode(),
        "root_path": "",
        "query_string": sent.query.encode(),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    async with asyncio.timeout(30):
        await app(scope, receive, send)
    headers = {name.decode(): value.decode("latin-1") for name, value in said[0]["headers"]}
    return Got(said[0]["status"], headers, b"".join(message.get("body", b"") for message in said[1:]))


def check(page: Page, sent: Sent, got: Got) -> None:
    """AssertionError where *got* is no answer that may be given to *sent*."""
    # Who has the patience of a millisecond may be told that it is over.
    assert got.status < 500 or got.status == 504, (sent, got)
    responses = sent.operation.told["responses"]
    # A path that a head's name leads elsewhere has the one answer of paths that are not there.
    is_elsewhere = got.status in {404, 405, 307} and str(got.status) not in responses
    assert is_elsewhere or str(got.status) in responses, (sent, got)
    if got.status >= 400:
        assert len(got.body) <= MAX_ERROR_BYTES, (sent, len(got.body))
        assert not echoed(sent, got), (sent, got)
    content = {} if is_elsewhere else responses[str(got.status)].get("content", {})
    kind = got.headers.get("content-type", "").partition(";")[0]
    if kind == "application/x-ndjson":
        check_lines(page, got.body)
    elif kind == "application/json" and content:
        schemas = [content[kind]["schema"]] if kind in content else []
        if got.status in {404, 405}:
            schemas.append({"$ref": "#/components/schemas/ErrorAnswer"})
        found = [list(page.problems(json.loads(got.body), schema)) for schema in schemas]
        assert [] in found, (sent, got, found)
    elif content:
        assert kind in content, (sent, got)


def check_lines(page: Page, body: bytes) -> None:
    """A result a line, and an end."""
    *lines, end = [json.loads(line) for line in body.splitlines()]
    assert [] == list(page.problems(end, {"$ref": "#/components/schemas/StreamEnd"})), end
    for line in lines:
        assert [] == list(page.problems(line, {"$ref": "#/components/schemas/StreamResult"})), line
        assert "error" not in line or len(json.dumps(line["error"])) <= MAX_ERROR_BYTES, line
    assert (end["num_lines"], end["num_errors"]) == (len(lines), sum("error" in line for line in lines))


def echoed(sent: Sent, got: Got) -> bool:
    """Whether the answer has a piece of the request that is too long to be chance."""
    pieces = {got.body[start : start + MAX_ECHO_BYTES + 1] for start in range(len(got.body) - MAX_ECHO_BYTES)}
    return any(piece in sent.body or piece in sent.path.encode() or piece in sent.query.encode() for piece in pieces)


def fuzzed_gateway(trunks: FakeTrunks) -> FakeGateway:
    """Heads of every kind."""
    spam = CatalogueHead(stable=7, versions={6: manifest("spam", version=6), 7: manifest("spam")}, canary=6, canary_share=0.5)
    tags = CatalogueHead(
        stable=7,
        versions={7: replace(manifest("tags"), task="multi_label", labels=("a/b", "c"), label_separator="/")},
        default=False,
        tags=("news",),
    )
    price = live(replace(manifest("price"), task="regression", labels=("value", "unused")), default=False)
    return FakeGateway(state_of(trunks, spam, tags, price, settings=Settings(_cli_parse_args=[], max_texts=64)))


def fuzz(app: FakeGateway, max_examples: int, *, derandomize: bool = False) -> collections.Counter[str]:
    """How many answers of which status *max_examples* requests got; the same requests each time where *derandomize*."""
    page = Page()
    operations = st.sampled_from(page.operations).flatmap(lambda operation: sent_to(page, operation))
    posts = st.sampled_from([one for one in page.operations if one.method == "POST"]).flatmap(lambda one: sent_to(page, one))
    seen: collections.Counter[str] = collections.Counter()

    bounds = settings(
        max_examples=max_examples,
        derandomize=derandomize,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with asyncio.Runner() as runner:

        @settings(bounds)
        @given(st.one_of(operations, posts, posts))
        def one(sent: Sent) -> None:
            got = runner.run(exchange(app, sent))
            check(page, sent, got)
            seen[f"{sent.operation.method} {sent.operation.path} {got.status}"] += 1

        one()
    return seen


def main() -> None:
    """Print what was answered how often; an answer that may not be is an AssertionError with the request."""
    with tempfile.TemporaryDirectory() as folder:
        seen = fuzz(fuzzed_gateway(FakeTrunks(encoder(Path(folder)))), int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    for name, count in sorted(seen.items()):
        print(f"{count:>7}  {name}")
    print(f"{seen.total():>7}  requests, every answer as the OpenAPI tells it")


if __name__ == "__main__":
    main()
