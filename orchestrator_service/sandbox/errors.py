"""Refusals as the real API words them: status, type, body and headers."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

# ApiError            every call that ends without a message
#   401 authentication_error, 400 invalid_request_error, 404 not_found_error, 413 request_too_large
#   429 rate_limit_error (a limit; with error_code: a spend limit), 403 permission_error
#   500 api_error, 529 overloaded_error

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass(eq=False)
class ApiError(Exception):
    # Not frozen: Python itself sets the traceback of an exception on its way up.
    status: int
    message: str
    error_code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def new_request_id() -> str:
    return "req_" + secrets.token_hex(12)


def error_body(error: ApiError, *, request_id: str) -> bytes:
    described: dict[str, object] = {"type": TYPES.get(error.status, "api_error"), "message": error.message}
    if error.error_code is not None:
        described["details"] = {"error_code": error.error_code}
    return json.dumps({"type": "error", "error": described, "request_id": request_id}).encode()


def retry_after(wait_s: float, *, speed_up: float) -> str:
    """Whole real seconds, at least one, brought down to this sandbox's pace; so 5 s at 40 is "0.125"."""
    real_s = max(1, -int(-wait_s * speed_up // 1))
    here_s = max(real_s / speed_up, 0.001)
    return f"{here_s:.6f}".rstrip("0").rstrip(".")


def fault_error(name: str, *, speed_up: float) -> ApiError:
    """The refusal that a fault of this name causes."""
    match name:
        case "rate_limit":
            wait = retry_after(5.0 / speed_up, speed_up=speed_up)
            return ApiError(429, RATE_LIMITED, headers={"retry-after": wait})
        case "rate_limit_bare":
            return ApiError(429, RATE_LIMITED)
        case "overloaded" | "stream_error":
            return ApiError(529, "Overloaded")
        case "spend_limit":
            return ApiError(429, SPEND_LIMITED, error_code="enforced_spend_limit_reached")
        case "permission":
            return ApiError(403, "Your API key does not have permission to use the specified resource.")
        case _:
            return ApiError(500, "Internal server error")


RATE_LIMITED = "This request would exceed your organization's rate limit (a fault that the sandbox was asked for)."
SPEND_LIMITED = "You have reached your organization's monthly API usage threshold (a fault of the sandbox)."
