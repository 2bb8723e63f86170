"""What a process writes to its log."""

import json
import subprocess
import sys

# In a process of its own: the logging of this one stays as it is.
PROGRAM = """
import logging
import grpc
from parley.wire import telemetry

telemetry.configure("test")
log = logging.getLogger("grpc._cython.cygrpc")
for error in (grpc.aio.InternalError("a write failed"), ValueError("our mistake")):
    try:
        raise error
    except Exception:
        log.exception("raised in core")
"""


def test_a_write_to_a_client_who_has_just_left_is_no_error_of_the_server():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    [line] = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["event"], line["level"], line["process"]) == ("raised in core", "error", "test")
    assert "our mistake" in line["exception"]
