"""Addresses: host:port, [::1]:port and unix:/path, and whether they stay on this machine."""

from __future__ import annotations

import ipaddress
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from parley.wire.errors import BootError

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]/\s]+):(?P<port>\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Tcp:
    # An IPv6 host without its brackets.
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Unix:
    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parse(text: str, *, setting: str) -> Tcp | Unix:
    """Raises BootError naming the setting where the text is no address."""
    if text.startswith("unix:"):
        return Unix(path=Path(text.removeprefix("unix:").removeprefix("//")))
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise BootError(f"{setting} is {text!r}, but must be HOST:PORT, [IPV6]:PORT or unix:/PATH.")
    return Tcp(host=match["host"].strip("[]"), port=int(match["port"]))


def is_loopback(address: Tcp | Unix) -> bool:
    """True where what is sent can't leave this machine."""
    if isinstance(address, Unix) or address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def clear_stale_socket(path: Path, *, setting: str) -> None:
    """Removes the socket that a dead server left; refuses that of a live one, which gRPC would silently take over."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BootError(f"{path} exists and is no socket; change {setting}.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise BootError(f"The socket {path} can't be used ({error}); change {setting}.") from error
    raise BootError(f"Another server listens on unix:{path}; stop it or change {setting}.")
