"""TLS credentials of both ends, from PEM files."""

from __future__ import annotations

from pathlib import Path

import grpc

from parley.wire.errors import BootError


def server_credentials(
    *, certificate_file: Path, key_file: Path, client_ca_file: Path | None = None
) -> grpc.ServerCredentials:
    """With a client CA, only clients with a certificate of that CA may connect."""
    pair = (_read(key_file, what="TLS key"), _read(certificate_file, what="TLS certificate"))
    client_ca = _read(client_ca_file, what="TLS client CA") if client_ca_file else None
    return grpc.ssl_server_credentials([pair], root_certificates=client_ca, require_client_auth=client_ca is not None)


def channel_credentials(
    ca_file: Path | None = None, *, certificate_file: Path | None = None, key_file: Path | None = None
) -> grpc.ChannelCredentials:
    """Without a CA file the system's authorities count; certificate and key are for servers that ask for them."""
    return grpc.ssl_channel_credentials(
        root_certificates=_read(ca_file, what="TLS CA") if ca_file else None,
        private_key=_read(key_file, what="TLS key") if key_file else None,
        certificate_chain=_read(certificate_file, what="TLS certificate") if certificate_file else None,
    )


def _read(path: Path, *, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BootError(f"The {what} file {path} can't be read: {error.strerror}.") from error
    if b"-----BEGIN " not in content:
        # gRPC would say no more than that the port can't be bound.
        raise BootError(f"The {what} file {path} is not in PEM format.")
    return content
