"""The gRPC options that both ends must agree on. A misspelt option is silently ignored, so they stand here once."""

import json

MESSAGE_MAX_BYTES = 32 * 1024 * 1024
METADATA_MAX_BYTES = 64 * 1024

_SHARED: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    # Between the soft and the absolute limit gRPC refuses at random; equal limits make it predictable.
    ("grpc.max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.absolute_max_metadata_size", METADATA_MAX_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# Waits between the attempts: 0.2, 0.4 and 0.8 s, each spread by the library; a server's pushback wins.
_SERVICE_CONFIG: dict[str, object] = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

SERVER_OPTIONS: tuple[tuple[str, int | str], ...] = (
    *_SHARED,
    # Without this a second server on the same port silently shares the traffic.
    ("grpc.so_reuseport", 0),
    # The clients' pings (every 30 s) must be allowed, or the server ends their connections with GOAWAY.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    *_SHARED,
    ("grpc.http2.max_pings_without_data", 0),
    # A server that comes back is found within seconds; the library would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)
