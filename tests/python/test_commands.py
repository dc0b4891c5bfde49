"""The commands that the README names: `dev`, `call`, `send`, `tail`."""

import json
import re
import subprocess

import pytest
import support
from support import BINARY, TIMEOUT
from websockets.sync.client import connect

EXACT = '{"id":"msg-123","type":"query","sessionId":"sess-456","payload":{"action":"search","query":"HEA synthesis"}}'


class Dev(support.Gateway):
    command = "dev"


@pytest.fixture
def dev(tmp_path):
    dev = Dev(tmp_path / "dev.log")
    yield dev
    dev.stop()


def twinspan(gateway, *arguments, code=0):
    command = [BINARY, *arguments, "--url", f"http://{gateway.address}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    assert run.returncode == code, run.stderr
    return run.stdout


def test_dev_answers_the_exact_message_and_prints_lines_that_work(dev):
    printed = dev.logged()
    assert f"ws://{dev.address}/v1/ws" in printed and EXACT in printed
    url = re.search(r'new WebSocket\("(.*?)"\)', printed)[1]
    with connect(url, proxy=None) as socket:
        socket.send(EXACT)
        text, frame = "", {}
        while not frame.get("final"):
            frame = json.loads(socket.recv(timeout=TIMEOUT))
            text += frame.get("text", "") if frame.get("replyTo") == "msg-123" else ""
    assert text == "HEA synthesis"


def test_call_prints_the_answer(dev):
    assert twinspan(dev, "call", "demo", "--text", "to be or not to be").strip() == "to be or not to be"


def test_call_tells_why_there_is_none(gateway):
    run = subprocess.run(
        [BINARY, "call", "nobody", "--text", "x", "--timeout", "300ms", "--url", f"http://{gateway.address}"],
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert run.returncode != 0 and run.stderr.strip()


def test_what_is_sent_is_seen_by_who_follows(gateway, attach):
    reader = attach("json")
    reader.join("s")
    twinspan(gateway, "send", "s", "--text", "from a terminal")
    assert reader.expect("text")["text"] == "from a terminal"
    command = [BINARY, "tail", "s", "--after", "0", "--json", "--url", f"http://{gateway.address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        frames = map(json.loads, tail.stdout)
        assert next(frame["text"] for frame in frames if "text" in frame) == "from a terminal"
        reader.send(text="live")
        assert next(frames)["text"] == "live"
        tail.terminate()
