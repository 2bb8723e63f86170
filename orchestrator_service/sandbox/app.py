"""The sandbox's routes, who may use them, and the one place where a refusal becomes a response."""

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from aiohttp import web

from orchestrator_service.sandbox.call import count_input_tokens
from orchestrator_service.sandbox.errors import ApiError, error_body, new_request_id
from orchestrator_service.sandbox.messages import create_message
from orchestrator_service.sandbox.models import MODELS, model_json, models_json
from orchestrator_service.sandbox.settings import SettingError, as_json
from orchestrator_service.sandbox.world import World

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The real API's limit on a request.
BODY_MAX_BYTES = 32 * 1024 * 1024
WORLD = web.AppKey("world", World)
REQUEST_ID = web.RequestKey("request_id", str)
log = logging.getLogger(__name__)


def new_app(world: World) -> web.Application:
    app = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[answer_errors])
    app[WORLD] = world
    app.router.add_post("/v1/messages", _messages)
    app.router.add_post("/v1/messages/count_tokens", _count_tokens)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/models/{id}", _model)
    app.router.add_get("/stats", _stats)
    app.router.add_post("/stats/reset", _reset_stats)
    app.router.add_get("/settings", _settings)
    app.router.add_post("/settings", _change_settings)
    return app


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    request_id = request[REQUEST_ID] = new_request_id()
    try:
        if request.path.startswith("/v1/"):
            _check_key(request)
        return await handler(request)
    except ApiError as error:
        return _error_response(request, error, request_id=request_id)
    except SettingError as error:
        return _error_response(request, ApiError(400, str(error)), request_id=request_id)
    except web.HTTPException as error:
        message = "Request exceeds the maximum size" if error.status == 413 else error.reason
        return _error_response(request, ApiError(error.status, message), request_id=request_id)
    except Exception:
        # The mistake is ours; the client learns the id under which the log has all of it.
        log.exception("request %s failed", request_id)
        return _error_response(request, ApiError(500, "Internal server error"), request_id=request_id)


def _error_response(request: web.Request, error: ApiError, *, request_id: str) -> web.Response:
    announced = request.app[WORLD].announced() if request.path.startswith("/v1/") else {}
    headers = {**announced, **error.headers, "request-id": request_id}
    body = error_body(error, request_id=request_id)
    return web.Response(body=body, status=error.status, headers=headers, content_type="application/json")


def _check_key(request: web.Request) -> None:
    """A bearer token is what the SDK sends, x-api-key what gateways and older clients do."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    wanted = request.app[WORLD].settings.api_key
    if not key:
        raise ApiError(401, "Authentication is required: send an API key")
    if wanted is not None and not hmac.compare_digest(key.encode(), wanted.encode()):
        raise ApiError(401, "invalid x-api-key")


async def _messages(request: web.Request) -> web.StreamResponse:
    return await create_message(request.app[WORLD], request, request_id=request[REQUEST_ID])


async def _count_tokens(request: web.Request) -> web.Response:
    return _v1(request, {"input_tokens": count_input_tokens(await request.read())})


async def _models(request: web.Request) -> web.Response:
    return _v1(request, models_json())


async def _model(request: web.Request) -> web.Response:
    model = MODELS.get(request.match_info["id"])
    if model is None:
        raise ApiError(404, f"model: {request.match_info['id']}")
    return _v1(request, model_json(model))


def _v1(request: web.Request, body: Mapping[str, object]) -> web.Response:
    return web.json_response(body, headers={**request.app[WORLD].announced(), "request-id": request[REQUEST_ID]})


async def _stats(request: web.Request) -> web.Response:
    world = request.app[WORLD]
    told: dict[str, object] = {"speed_up": world.settings.speed_up_announced}
    told.update(world.stats.as_json(all_prompts=request.query.get("prompts") == "all"))
    return web.json_response(told)


async def _reset_stats(request: web.Request) -> web.Response:
    request.app[WORLD].reset_stats()
    return await _stats(request)


async def _settings(request: web.Request) -> web.Response:
    return web.json_response(as_json(request.app[WORLD].settings))


async def _change_settings(request: web.Request) -> web.Response:
    try:
        changes = cast(object, json.loads(await request.read()))
    except ValueError:
        raise SettingError("the body is not valid JSON") from None
    if not isinstance(changes, dict):
        raise SettingError("the body is not a JSON object")
    request.app[WORLD].change(cast("dict[str, object]", changes))
    return await _settings(request)
