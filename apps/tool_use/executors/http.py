"""Operations of an OpenAPI 3 document over HTTP, to hosts that were named and to no others.

A redirect to another host is refused like a call to it. Status codes become observations: 404, 401, 403 and 429 have
statuses of their own, every other failure is a failed request.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from apps.tool_use.executors.observation import (
    FAILED,
    NOT_FOUND,
    NOT_SUBSCRIBED,
    RATE_LIMIT,
    TIMEOUT,
    UNAUTHORISED,
    Executor,
    Failure,
)
from apps.tool_use.spec import Route, ToolSpec, openapi_operations
from core.errors import ConfigError

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
        servers = document.get("servers") or [{}]
        self.base = (base or servers[0].get("url") or "").rstrip("/")
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
        """The HTTP request of a call: each argument where the document puts it."""
        route = self.routes[tool.name]
        path, headers = route.path, {"Accept": "application/json", **self.headers}
        query: list[tuple[str, str]] = []
        body: dict[str, Any] = {}
        for name, value in arguments.items():
            place = route.places.get(name, "query")
            if place == "path":
                path = path.replace(f"{{{name}}}", urllib.parse.quote(_text(value), safe=""))
            elif place == "body":
                body[name] = value
            elif place == "header":
                headers[name] = _text(value).replace("\r", " ").replace("\n", " ")
            else:
                query += [(name, _text(item)) for item in (value if isinstance(value, list) else [value])]
        url = f"{self.base}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None
        if body or "body" in route.places.values():
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        return urllib.request.Request(url, data=data, headers=headers, method=route.verb.upper())

    def _call(self, tool: ToolSpec, arguments: dict[str, Any]) -> Any:
        request = self.request(tool, arguments)
        check_host(request.full_url, self.allow)
        try:
            with self._opener.open(request, timeout=self.timeout_s) as answer:
                text = answer.read(self.most_bytes).decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace").strip()
            raise Failure(
                STATUSES.get(error.code, FAILED), f"HTTP {error.code} {error.reason}. {said}".strip()
            ) from None
        except TimeoutError:
            raise Failure(TIMEOUT, f"No answer within {self.timeout_s:g} s.") from None
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            status = TIMEOUT if isinstance(reason, TimeoutError) else FAILED
            raise Failure(status, f"The request failed: {reason}") from None
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text


def check_host(url: str, allow: frozenset[str]) -> None:
    """Raise `Failure` when the address is not of an allowed host, or not HTTP."""
    parts = urllib.parse.urlsplit(url)
    host = (parts.hostname or "").lower()
    names = {f"{host}:{parts.port}"} if parts.port else {host}
    if parts.port in (80, 443):
        names.add(host)
    if parts.scheme not in ("http", "https") or not names & allow:
        raise Failure(FAILED, f"The host {parts.netloc or url!r} is not allowed.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
