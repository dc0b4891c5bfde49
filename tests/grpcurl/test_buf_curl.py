"""The command line of a gRPC engineer. `buf curl` stands in for grpcurl, which no package brings; both learn all they know from
server reflection."""

import base64
import json
import os
import re
import subprocess

import pytest
import worker as example
from support import ROOT, TIMEOUT

BUF = ROOT / "tests/node_modules/.bin/buf"


@pytest.fixture
def curl(gateway, tmp_path):
    """Calls a method with messages, and returns the messages that it answers with."""

    def curl(method, *messages, code=0):
        process = start(method)
        lines = "".join(json.dumps(message) for message in messages)
        out, error = process.communicate(lines or "{}", timeout=TIMEOUT)
        assert process.returncode == code, error
        return parse(error if code else out)

    def start(method):
        command = [BUF, "curl", "--http2-prior-knowledge", "--protocol", "grpc", "--data", "@-"]
        command.append(f"http://{gateway.address}/twinspan.v1.{method}")
        environment = os.environ | {"HOME": str(tmp_path), "BUF_CACHE_DIR": str(tmp_path), "no_proxy": "127.0.0.1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, **pipes)

    curl.start = start
    return curl


def parse(text):
    decoder, found, text = json.JSONDecoder(), [], text.strip()
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].lstrip()
    return found


@pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
def test_services_are_listed(gateway, tmp_path, protocol):
    options = ["--http2-prior-knowledge", "--protocol", "grpc", "--reflect-protocol", protocol, "--list-services"]
    command = [BUF, "curl", *options, f"http://{gateway.address}"]
    environment = os.environ | {"HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert listed.returncode == 0, listed.stderr
    assert {"twinspan.v1.Gateway", "twinspan.v1.Sessions"} <= set(listed.stdout.split())


def test_a_session_is_made_written_and_read(curl):
    [session] = curl("Sessions/Create", {"sessionId": "s", "metadata": {"owner": "ann"}})
    assert session["sessionId"] == "s" and session["state"] == "SESSION_STATE_OPEN"
    frame = {"sessionId": "s", "id": "one", "type": "note", "payload": {"n": [1, None, "ü"]}}
    assert curl("Sessions/Publish", {"frame": frame}) == [{"id": "one", "seq": "1"}]
    [page] = curl("Sessions/ListFrames", {"sessionId": "s"})
    [listed] = page["frames"]
    assert listed["payload"] == frame["payload"] and listed["seq"] == "1" and page["headSeq"] == "1"


def test_an_error_is_told_with_its_details(curl):
    [error] = curl("Sessions/Get", {"sessionId": "none"}, code=40)
    assert error["code"] == "not_found"
    [detail] = error["details"]
    assert detail["type"] == "google.rpc.ErrorInfo" and b"SESSION_NOT_FOUND" in base64.b64decode(detail["value"] + "==")


def test_a_session_is_watched(curl, attach):
    writer = attach("json")
    writer.publish("s", text="before")
    watching = curl.start("Sessions/Watch")
    watching.stdin.write('{"sessionId":"s","afterSeq":"0"}')
    watching.stdin.close()
    lines = ""
    while "before" not in lines:
        lines += read_line(watching)
    writer.publish("s", text="live")
    while "live" not in lines:
        lines += read_line(watching)
    assert lines.index("joined") < lines.index("before") < lines.index("live")
    watching.terminate()
    watching.wait(TIMEOUT)


def read_line(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line


def test_a_whole_session_over_attach(curl, worker):
    """Standard input ends after the request; the stream ends by itself after the final reply."""
    request = {"id": "msg-123", "type": "query", "sessionId": "sess-456", "payload": {"action": "search", "query": "HEA synthesis"}}
    frames = curl("Gateway/Attach", request)
    assert frames[0]["ack"]["accepted"] == [{"sessionId": "sess-456", "id": "msg-123", "seq": "1"}]
    replies = [frame for frame in frames if frame.get("replyTo") == "msg-123"]
    assert "".join(reply.get("text", "") for reply in replies) == example.answer("HEA synthesis") + " "
    assert replies[-1]["final"] is True and frames[-1] == replies[-1]


def test_several_frames_over_attach(curl, worker):
    frames = curl(
        "Gateway/Attach",
        {"id": "h", "hello": {"client": "curl/1"}},
        {"id": "j", "sessionId": "s", "join": {"role": "operator"}},
        {"id": "q", "type": "query", "payload": {"query": "x"}},
        {"id": "bad", "to": {"role": "brain", "memberId": "both"}, "text": "x"},
        {"id": "p", "ping": {"data": "x"}},
    )
    answers = {frame["replyTo"]: frame for frame in frames if "seq" not in frame and "replyTo" in frame}
    assert answers["h"]["welcome"]["server"].startswith("twinspan/")
    assert answers["j"]["joined"]["role"] == "operator"
    assert answers["bad"]["error"]["reason"] == "INVALID_FIELD"
    assert answers["p"]["pong"] == {"data": "x"}
    assert frames[-1]["replyTo"] == "q" and frames[-1]["final"] is True


def test_the_calls_of_the_readme(curl, worker):
    readme = (ROOT / "README.md").read_text()
    written = re.findall(r"^grpcurl -plaintext -d '(.*)' 127.0.0.1:7080 twinspan.v1.(\S+)$", readme, re.MULTILINE)
    answers = {method: curl(method, json.loads(data)) for data, method in written if method != "Sessions/Watch"}
    assert len(written) == 3 and answers["Gateway/Attach"][-1]["final"] is True
    [page] = answers["Sessions/ListFrames"]
    assert page["frames"][0]["payload"] == {"query": "from a terminal"} and page["frames"][-1]["final"] is True
