"""Requests that may cause spending, remembered by their ids: a repeated one gets the same answer."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from orchestrator_service.domain.errors import ParleyError
from orchestrator_service.storage.tables import requests
from orchestrator_service.storage.writer import Transaction


@dataclass(frozen=True, kw_only=True)
class Request:
    owner: str
    method: str
    # Empty: never remembered.
    request_id: str
    body_sha256: str


@dataclass(frozen=True)
class Remembered:
    batch: str
    requeued: int


def find(connection: Connection, request: Request) -> Remembered | None:
    """What the same request brought before. Raises REQUEST_ID_REUSED where the body differs."""
    if not request.request_id:
        return None
    key = (
        requests.c.owner == request.owner,
        requests.c.method == request.method,
        requests.c.request_id == request.request_id,
    )
    row = connection.execute(select(requests).where(*key)).mappings().one_or_none()
    if row is None:
        return None
    if row["body_sha256"] != request.body_sha256:
        raise ParleyError(
            "REQUEST_ID_REUSED",
            f"request_id {request.request_id} was used before for a different request.",
            metadata={"request_id": request.request_id, "batch": f"batches/{row['batch']}"},
        )
    return Remembered(row["batch"], row["requeued"])


def remember(tx: Transaction, request: Request, *, batch: str, now_us: int, requeued: int = 0) -> None:
    if not request.request_id:
        return
    row = {
        "owner": request.owner,
        "method": request.method,
        "request_id": request.request_id,
        "body_sha256": request.body_sha256,
        "batch": batch,
        "requeued": requeued,
        "created_us": now_us,
    }
    tx.connection.execute(insert(requests), row)
