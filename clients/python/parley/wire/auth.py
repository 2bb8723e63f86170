"""Who calls: bearer tokens of a file, and the identity of the caller of the current RPC."""

from __future__ import annotations

import hashlib
import hmac
import stat
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from parley.wire.errors import BootError, Refusal

_TOKEN_MIN_CHARS = 16
_NAME_MAX_CHARS = 200
_TOKENS_MAX = 1_000
_FILE_MAX_BYTES = 1_000_000
_ACT_FOR_OTHERS = "act-for-others"


@dataclass(frozen=True, kw_only=True)
class Identity:
    name: str
    may_act_for_others: bool


# Without a token file the server is one person's own, on their machine.
LOCAL = Identity(name="local", may_act_for_others=True)

_caller: ContextVar[Identity] = ContextVar("parley_caller")


def caller() -> Identity:
    """The identity behind the RPC that is being served; set before its handler runs."""
    return _caller.get()


def set_caller(identity: Identity) -> None:
    _caller.set(identity)


class TokenRefused(Refusal):
    """The call carries no token, or one that the server does not know."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    sha256: bytes
    identity: Identity


class Tokens:
    """The server's bearer tokens. Only their hashes stay in memory."""

    def __init__(self, entries: Sequence[_Entry] | None) -> None:
        self._entries = entries

    @classmethod
    def none(cls) -> Tokens:
        """No file: everyone is LOCAL."""
        return cls(None)

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Reads `TOKEN NAME [act-for-others]` a line, # for comments; raises BootError naming the line."""
        entries: dict[bytes, _Entry] = {}
        for number, line in enumerate(_read(path).splitlines(), start=1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            entry = _entry(words, where=f"Line {number} of the token file {path}")
            if entry.sha256 in entries:
                raise BootError(f"Line {number} of the token file {path} repeats a token.")
            entries[entry.sha256] = entry
        if not 0 < len(entries) <= _TOKENS_MAX:
            raise BootError(f"The token file {path} has {len(entries)} tokens; it needs 1 to {_TOKENS_MAX}.")
        return cls(tuple(entries.values()))

    def identify(self, authorizations: Sequence[str]) -> Identity:
        """The identity behind the values of the `authorization` metadata; raises TokenRefused."""
        if self._entries is None:
            return LOCAL
        if not authorizations:
            raise TokenRefused("TOKEN_MISSING", "This server wants a bearer token.")
        scheme, _, token = authorizations[0].partition(" ")
        if len(authorizations) > 1 or scheme.lower() != "bearer":
            raise TokenRefused("TOKEN_INVALID", "The authorization must be one `Bearer TOKEN`.")
        identity = self._find(_sha256(token.strip()))
        if identity is None:
            raise TokenRefused("TOKEN_INVALID", "The bearer token is not known to this server.")
        return identity

    def _find(self, sha256: bytes) -> Identity | None:
        # All are compared, so that the time tells nothing about which one nearly matched.
        matches = [e.identity for e in self._entries or () if hmac.compare_digest(e.sha256, sha256)]
        return matches[0] if matches else None


def _read(path: Path) -> str:
    try:
        status = path.stat()
        if status.st_mode & stat.S_IRWXO:
            raise BootError(f"The token file {path} is open to every user of this machine; run: chmod o-rwx {path}")
        if status.st_size > _FILE_MAX_BYTES:
            raise BootError(f"The token file {path} is larger than {_FILE_MAX_BYTES} bytes.")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BootError(f"The token file {path} can't be read: {error}.") from error


def _entry(words: Sequence[str], *, where: str) -> _Entry:
    if len(words) not in (2, 3) or words[2:] not in ([], [_ACT_FOR_OTHERS]):
        # The line itself stays out of the message: it holds a secret.
        raise BootError(f"{where} must be `TOKEN NAME` or `TOKEN NAME {_ACT_FOR_OTHERS}`.")
    token, name = words[:2]
    if len(token) < _TOKEN_MIN_CHARS:
        raise BootError(f"{where} has a token of under {_TOKEN_MIN_CHARS} characters; try: openssl rand -hex 24")
    if len(name) > _NAME_MAX_CHARS:
        raise BootError(f"{where} has a name of over {_NAME_MAX_CHARS} characters.")
    return _Entry(sha256=_sha256(token), identity=Identity(name=name, may_act_for_others=len(words) == 3))


def _sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
