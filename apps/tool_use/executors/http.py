"""Operations of an OpenAPI 3 document over HTTP, to hosts that were named and to no others.

A redirect to another host is refused like a call to it, and so is a path argument that would lead to another path.
Status codes become observations: 404, 401, 403 and 429 have statuses of their own, every other failure is a failed
request.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from apps.tool_use.executors.observation import (
    BAD_ARGUMENTS,
    FAILED,
    NOT_FOUND,
    NOT_SUBSCRIBED,
    RATE_LIMIT,
    TIMEOUT,
    UNAUTHORISED,
    Executor,
    Failure,
)
from apps.tool_use.openapi import Route, openapi_operations
from apps.tool_use.spec import ToolSpec
from core.errors import ConfigError

FORM_BODY = "application/x-www-form-urlencoded"
STATUSES = {401: UNAUTHORISED, 403: NOT_SUBSCRIBED, 404: NOT_FOUND, 408: TIMEOUT, 429: RATE_LIMIT, 504: TIMEOUT}


class _SameHosts(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed hosts only."""

    def __init__(self, allow: frozenset[str]) -> None:
        self.allow = allow

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_host(newurl, self.allow)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Http(Executor):
    """Calls the operations of `document`.

    Args:
        allow: hosts, "api.example.com" or "127.0.0.1:8080"; a host without a port stands for the scheme's own port.
        base: address before the paths; None takes the document's first server.
        headers: sent with every call, an authorisation say. timeout_s: of a call. most_bytes: of an answer.

    Raises:
        ConfigError: no base, or its host is not allowed.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        *,
        allow: Sequence[str],
        base: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 15,
        most_bytes: int = 1 << 20,
        **options: Any,
    ) -> None:
        operations = openapi_operations(document)
        super().__init__([tool for tool, _ in operations], **options)
        self.routes: dict[str, Route] = {tool.name: route for tool, route in operations}
        if isinstance(allow, str):
            raise ConfigError("allow is a list of hosts", where="Http.allow", hint=f"allow=[{allow!r}]")
        servers = document.get("servers") or [{}]
        first = servers[0] if isinstance(servers, list) and isinstance(servers[0], Mapping) else {}
        self.base = str(base or first.get("url") or "").rstrip("/")
        self.allow = frozenset(host.lower() for host in allow)
        if not self.base:
            raise ConfigError("the document names no server", where="servers", hint="give base='https://…'")
        try:
            check_host(self.base, self.allow)
        except Failure as failure:
            raise ConfigError(failure.text, where="Http.base", hint="name the host in allow=[…]") from failure
        self.headers, self.timeout_s, self.most_bytes = dict(headers or {}), timeout_s, most_bytes
        self._opener = urllib.request.build_opener(_SameHosts(self.allow))

    def request(self, tool: ToolSpec, arguments: Mapping[str, Any]) -> urllib.request.Request:
        """The HTTP request of a call: each argument where the document puts it.

        Raises:
            Failure: a path argument of dots, a header that no header can be, a body of a type that is not sent.
        """
        route = self.routes[tool.name]
        path, headers = route.path, {"Accept": "application/json", **self.headers}
        query: list[tuple[str, str]] = []
        body: dict[str, Any] = {}
        whole: list[Any] = []
        cookies = []
        for name, value in arguments.items():
            for place in route.places.get(name, ("query",)):
                if place == "path":
                    if _text(value) in ("", ".", ".."):
                        raise Failure(BAD_ARGUMENTS, f"Bad arguments: /{name}: {value!r} is no part of a path")
                    path = path.replace(f"{{{name}}}", urllib.parse.quote(_text(value), safe=""))
                elif place == "body":
                    body[name] = value
                elif place == "whole":
                    whole.append(value)
                elif place == "header":
                    headers[name] = _text(value).replace("\r", " ").replace("\n", " ")
                elif place == "cookie":
                    cookies.append(f"{name}={urllib.parse.quote(_text(value))}")
                else:
                    query += [(name, _text(item)) for item in (value if isinstance(value, list) else [value])]
        if cookies:
            headers["Cookie"] = "; ".join(filter(None, [headers.get("Cookie"), *cookies]))
        url = f"{self.base}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None
        if body or whole or any("body" in places for places in route.places.values()):
            data, headers["Content-Type"] = _encoded(whole[0] if whole else body, route.media), route.media
        return urllib.request.Request(url, data=data, headers=headers, method=route.verb.upper())

    def _call(self, tool: ToolSpec, arguments: dict[str, Any]) -> Any:
        request = self.request(tool, arguments)
        check_host(request.full_url, self.allow)
        try:
            with self._opener.open(request, timeout=self.timeout_s) as answer:
                text = self._read(answer).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace").strip()
            raise Failure(
                STATUSES.get(error.code, FAILED), f"HTTP {error.code} {error.reason}. {said}".strip()
            ) from None
        except TimeoutError:
            raise Failure(TIMEOUT, f"No answer within {self.timeout_s:g} s.") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            status = TIMEOUT if isinstance(reason, TimeoutError) else FAILED
            raise Failure(status, f"The request failed: {reason}") from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def _read(self, answer: Any) -> bytes:
        """At most `most_bytes` of an answer, which must come within the call's time however slowly it drips."""
        found, ends = bytearray(), time.monotonic() + self.timeout_s
        while len(found) < self.most_bytes and (piece := answer.read1(min(1 << 16, self.most_bytes - len(found)))):
            found += piece
            if time.monotonic() > ends:
                raise TimeoutError
        return bytes(found)


def _encoded(body: Any, media: str) -> bytes:
    """A body as JSON or as a form. Raises `Failure` for other types."""
    if media.partition(";")[0] == FORM_BODY and isinstance(body, Mapping):
        return urllib.parse.urlencode({name: _text(value) for name, value in body.items()}).encode()
    if "json" not in media and media != "*/*":
        raise Failure(FAILED, f"A body of the type {media} is not sent from here; JSON and forms are.")
    return json.dumps(body).encode()


def check_host(url: str, allow: frozenset[str]) -> None:
    """Raise `Failure` when the address is not of an allowed host, or not HTTP."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Failure(FAILED, f"{url!r} is no address: {error}.") from None
    host = (parts.hostname or "").lower()
    names = {f"{host}:{port}"} if port else {host}
    if port in (80, 443):
        names.add(host)
    if parts.scheme not in ("http", "https") or not names & allow:
        raise Failure(FAILED, f"The host {parts.netloc or url!r} is not allowed.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
