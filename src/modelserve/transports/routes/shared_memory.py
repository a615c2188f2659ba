"""Triton's shared memory extension: what is registered, to register, and to forget it again.

System shared memory in full. CUDA shared memory is handed over as handles of GPU memory, which
nothing here opens: there is none to list or to forget, and registering is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelserve.codecs.shared_memory import decode_registration, encode_regions
from modelserve.errors import Unsupported
from modelserve.transports.shared_memory import NoSuchRegion

from .messages import Reply, Request, reply_json
from .table import SMALL_BODY, Call, Endpoint, Route

if TYPE_CHECKING:
    from .routes import Routes

__all__ = ["ENDPOINTS"]


async def _status(routes: Routes, request: Request, route: Route) -> Reply:
    found = routes.shared_memory.regions(route.names.get("region", ""))
    return reply_json(200, encode_regions(found), request)


async def _register(routes: Routes, request: Request, route: Route) -> Reply:
    key, offset, byte_size = decode_registration(request.body)
    name = route.names["region"]
    routes.shared_memory.register(name, key, offset=offset, byte_size=byte_size)
    return reply_json(200, b"", request)


async def _unregister(routes: Routes, request: Request, route: Route) -> Reply:
    routes.shared_memory.unregister(route.names.get("region", ""))
    return reply_json(200, b"", request)


async def _cuda_status(routes: Routes, request: Request, route: Route) -> Reply:
    name = route.names.get("region", "")
    if name:
        raise NoSuchRegion(f'there is no region "{name[:80]}" of CUDA shared memory')
    return reply_json(200, encode_regions(()), request)


async def _cuda_register(routes: Routes, request: Request, route: Route) -> Reply:
    raise Unsupported("handles of GPU memory are not taken here; register system shared memory")


async def _cuda_unregister(routes: Routes, request: Request, route: Route) -> Reply:
    return reply_json(200, b"", request)


def _endpoints(
    kind: str, path: str, calls: tuple[Call, Call, Call], registers: str
) -> list[Endpoint]:
    status, register, unregister = calls
    region = f"{path}/region/{{region}}"

    def post(path: str, call: Call, summary: str, says: str) -> Endpoint:
        return Endpoint(
            "POST", path, call, "admin", max_body=SMALL_BODY, summary=summary, described=says
        )

    def get(path: str, summary: str, says: str) -> Endpoint:
        return Endpoint("GET", path, status, "admin", summary=summary, described=says)

    return [
        get(f"{path}/status", f"all registered regions of {kind}", "control.REGIONS"),
        get(f"{region}/status", f"one registered region of {kind}", "control.REGION"),
        post(f"{region}/register", register, f"let requests use {kind}", registers),
        post(
            f"{path}/unregister", unregister, f"forget all regions of {kind}", "control.UNREGISTER"
        ),
        post(
            f"{region}/unregister", unregister, f"forget a region of {kind}", "control.UNREGISTER"
        ),
    ]


ENDPOINTS: Final = (
    *_endpoints(
        "system shared memory",
        "/v2/systemsharedmemory",
        (_status, _register, _unregister),
        "control.REGISTER",
    ),
    *_endpoints(
        "CUDA shared memory",
        "/v2/cudasharedmemory",
        (_cuda_status, _cuda_register, _cuda_unregister),
        "control.REGISTER_CUDA",
    ),
)
