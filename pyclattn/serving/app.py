"""Routes: the Open Inference Protocol v2, metrics, and a page."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pyclattn.serving import protocol
from pyclattn.serving.body import read, whole_header
from pyclattn.serving.describe import model_metadata, plan_of, run_parameters, server_metadata
from pyclattn.serving.errors import ClientGoneError, RequestError
from pyclattn.serving.logs import log
from pyclattn.serving.protocol import InferRequest
from pyclattn.serving.queue import Job
from pyclattn.serving.runner import Outcome
from pyclattn.serving.service import Service

# Larger ones are read and written beside the event loop, so that health and metrics are answered meanwhile.
SMALL = 1 << 16
PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
JSON_LENGTH = "inference-header-content-length"
CLIENT_GONE = 499  # nginx's number; nobody receives it

Endpoint = Callable[[Service, Request], Awaitable[Response]]


def create_app(service: Service, hosts: frozenset[str] | None = None) -> Starlette:
    """The ASGI application of a service.

    Parameters
    ----------
    service : Service
    hosts : frozenset of str, optional
        Names the service is asked by (the Host header without port); others are refused, so that a page of another
        site cannot reach a service on this machine. None: any.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette):
        await service.start()
        yield
        await service.stop()

    def endpoint(function: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        return partial(_guarded, function, service, hosts)

    model = "/v2/models/{name}"
    routes = [
        *(Route(at, endpoint(function)) for at, function in (
            ("/", _page), ("/metrics", _metrics), ("/v2", _server), ("/v2/health/live", _live),
            ("/v2/health/ready", _ready),
        )),
        *(Route(f"{at}{end}", endpoint(function)) for at in (model, model + "/versions/{version}")
          for end, function in (("", _metadata), ("/ready", _model_ready), ("/config", _metadata), ("/plan", _plan))),
        *(Route(f"{at}/infer", endpoint(_infer), methods=["POST"]) for at in (model, model + "/versions/{version}")),
        Route("/v2/repository/index", endpoint(_index), methods=["POST"]),
    ]  # fmt: skip
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _http_error})


async def _guarded(function: Endpoint, service: Service, hosts: frozenset[str] | None, request: Request) -> Response:
    """An endpoint's answer, or its error as the protocol tells errors."""
    try:
        host = re.sub(r":\d*$", "", request.headers.get("host", ""))
        if hosts is not None and host.lower() not in hosts:
            raise RequestError(421, f"this service is not known as {host[:80]!r}: see --allow-host")
        return await function(service, request)
    except RequestError as error:
        return _error(error)
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    except Exception as error:
        log("fault", "error", exception=error, path=request.url.path[:200])
        return _error(RequestError(500, "internal error: the service's log has the details"))


def _error(error: RequestError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    message = str(error).encode(errors="backslashreplace").decode()  # JSON may hold half a surrogate pair, UTF-8 not
    return JSONResponse({"error": message}, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own complaints: unknown paths and methods."""
    status = getattr(error, "status_code", 500)
    message = f"{request.method} {request.url.path[:200]}: {getattr(error, 'detail', 'error')}"
    return JSONResponse({"error": message}, status, getattr(error, "headers", None))


async def _page(service: Service, request: Request) -> Response:
    return FileResponse(PAGE, media_type="text/html", headers={"Content-Security-Policy": POLICY})


async def _metrics(service: Service, request: Request) -> Response:
    repository = service.repository
    for name in repository.names():
        service.metrics.version.labels(name).set(repository.get(name).number)
    service.metrics.not_loaded.set(repository.n_failures)
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _server(service: Service, request: Request) -> Response:
    return JSONResponse(server_metadata())


async def _live(service: Service, request: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(service: Service, request: Request) -> Response:
    return JSONResponse({"ready": service.is_ready}, 200 if service.is_ready else 503)


def _version(service: Service, request: Request):
    return service.repository.get(request.path_params["name"], request.path_params.get("version"))


async def _metadata(service: Service, request: Request) -> Response:
    return JSONResponse(model_metadata(_version(service, request)))


async def _model_ready(service: Service, request: Request) -> Response:
    return JSONResponse({"name": _version(service, request).name, "ready": True})


async def _plan(service: Service, request: Request) -> Response:
    return JSONResponse(plan_of(_version(service, request)))


async def _index(service: Service, request: Request) -> Response:
    versions = [service.repository.get(name) for name in service.repository.names()]
    return JSONResponse([{"name": v.name, "version": str(v.number), "state": "READY"} for v in versions])


async def _infer(service: Service, request: Request) -> Response:
    """Read, run, answer; and one line of the log, whatever happens."""
    start = monotonic()
    seen: dict[str, Any] = {"model": "", "status": 500}
    try:
        response = await _answer(service, request, seen)
        seen["status"] = response.status_code
        return response
    except RequestError as error:
        seen.update(status=error.status, error=str(error)[:500])
        raise
    except ClientGoneError:
        seen["status"] = CLIENT_GONE
        raise
    finally:
        seconds = monotonic() - start
        service.metrics.requests.labels(seen["model"], seen["status"]).inc()
        if seen["status"] == 200:
            service.metrics.latency.labels(seen["model"]).observe(seconds)
        log("request", client=request.client.host if request.client else "", ms=round(1e3 * seconds, 2), **seen)


async def _answer(service: Service, request: Request, seen: dict[str, Any]) -> Response:
    with service.pending.holding() as share:
        body = await read(request, service.limits, share)
        seen["bytes_in"] = len(body)
        version = _version(service, request)
        seen["model"] = version.name
        json_length = whole_header(request, JSON_LENGTH)
        asked = await _beside(len(body), protocol.decode, body, json_length, service.limits)
        if asked.id:
            seen["id"] = asked.id
        names = _wanted(asked, [v.name for v in version.model.program.outputs])
        wants_report = asked.parameters.get("report") is True
        job = service.accept(version, asked.inputs, _timeout(asked), wants_report)
        outcome = await service.outcome(job, partial(_disconnected, request))
        seen.update(_timing(job, outcome))
        outputs = {name: outcome.outputs[name] for name in names}
        size = sum(array.nbytes for array in outputs.values())
        parameters = None
        if wants_report:  # the memory of a run may have to be planned
            parameters = await asyncio.to_thread(run_parameters, version, asked.inputs, outcome)
        content, length = await _beside(
            size, protocol.encode, asked, version.name, str(version.number), outputs, parameters
        )
        seen["bytes_out"] = len(content)
    if length is None:
        return Answer(content, media_type="application/json")
    return Answer(content, media_type="application/octet-stream", headers={JSON_LENGTH: str(length)})


class Answer(Response):
    """Sent in pieces, each when the client has taken the one before: only so is it seen that it takes them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), SMALL):
            await send({"type": "http.response.body", "body": bytes(body[start : start + SMALL]), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _beside(size: int, function: Callable, *arguments: Any) -> Any:
    """A call, in another thread if it is about many bytes."""
    return function(*arguments) if size <= SMALL else await asyncio.to_thread(function, *arguments)


async def _disconnected(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wanted(asked: InferRequest, known: list[str]) -> list[str]:
    unknown = [name[:80] for name in asked.outputs or () if name not in known]
    if unknown:
        raise RequestError(400, f"outputs {', '.join(unknown)} do not exist; the model has {', '.join(known)}")
    return asked.outputs or known


def _timeout(asked: InferRequest) -> float | None:
    """Seconds the client gives, in microseconds as Triton counts them."""
    value = asked.parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise RequestError(400, f"timeout must be a whole number of microseconds, got {str(value)[:40]}")
    return value / 1e6


def _timing(job: Job, outcome: Outcome) -> dict[str, Any]:
    return {
        "tokens": job.tokens,
        "queue_ms": round(1e3 * outcome.queue_seconds, 2),
        "run_ms": round(1e3 * outcome.run_seconds, 2),
        "run_requests": outcome.n_requests,
    }
