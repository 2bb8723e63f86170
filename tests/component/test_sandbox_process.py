"""The sandbox as a process of its own: its first line, its end, its options and its sameness."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "orchestrator_service.sandbox")
END_MAX_S = 3


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    serving: dict[str, Any]

    def ask(self, text: str, *, stream: bool = False) -> bytes:
        body: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 4_000, "stream": stream}
        body["messages"] = [{"role": "user", "content": text}]
        headers = {"x-api-key": "any", "content-type": "application/json"}
        url = self.serving["url"] + "/v1/messages"
        with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=5) as response:
            return response.read()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=END_MAX_S)


@contextmanager
def running(*options: str) -> Generator[Running]:
    command = (*COMMAND, "--port", "0", *options)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Running(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


def answer(served: Running, about: str) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(served.ask(f"As JSON, exactly 2 exchanges.\nTopic: {about}"))
    return {"id": message["id"], "content": message["content"], "usage": message["usage"]}


def test_the_first_line_says_where_it_serves_and_sigterm_ends_it() -> None:
    with running("--speed-up", "40") as served:
        assert served.serving["event"] == "serving"
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.serving["url"])
        assert served.serving["speed_up"] == 40
        assert served.end(signal.SIGTERM) == 0


def test_sigint_ends_it_while_a_call_is_stalled() -> None:
    with running("--zero-latency", "--fault", "stall=1") as served:
        url = f"{served.serving['url']}/v1/messages"
        body = json.dumps({"model": "claude-opus-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]})
        with urlopen(Request(url, body.encode(), {"x-api-key": "any"}), timeout=5) as response:
            assert response.status == 200
            assert served.end(signal.SIGINT) == 0


def test_two_processes_with_one_seed_answer_alike_and_another_seed_does_not() -> None:
    options = ("--zero-latency", "--tokens-mean", "300", "--seed")
    with running(*options, "7") as one, running(*options, "7") as same, running(*options, "8") as other:
        # In another order, for an answer must not depend on what was asked before it.
        told = [answer(one, about) for about in ("debt", "rent", "debt")]
        again = [answer(same, about) for about in ("rent", "debt", "debt")]
        assert told == [again[1], again[0], again[2]]
        assert answer(other, "debt")["content"] != told[0]["content"]


def test_a_stream_has_the_events_of_the_real_one_in_their_order() -> None:
    with running("--zero-latency", "--tokens-mean", "300") as served:
        names = re.findall(rb"^event: (\w+)$", served.ask("As JSON, 2 exchanges.", stream=True), re.MULTILINE)
    assert names[:3] == [b"message_start", b"content_block_start", b"ping"]
    assert set(names[3:-3]) == {b"content_block_delta"}
    assert names[-3:] == [b"content_block_stop", b"message_delta", b"message_stop"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fault", "gremlins=0.1"), "no fault is called 'gremlins'"),
        (("--fault", "reset"), "NAME=PROBABILITY"),
        (("--speed-up", "0"), "speed_up"),
        (("--burst-s", "-1"), "burst_s"),
        (("--port", "70000"), "70000 is not a port"),
        (("--sped-up", "3"), "unrecognized arguments"),
    ],
)
def test_a_bad_option_ends_it_with_one_clear_line(options: tuple[str, ...], said: str) -> None:
    ended = subprocess.run((*COMMAND, *options), cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with running("--zero-latency") as served:
        port = served.serving["url"].rsplit(":", 1)[1]
        command = (*COMMAND, "--port", port)
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert ended.stderr.count("\n") == 1
