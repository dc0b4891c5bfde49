"""gRPC-Web by hand, over plain HTTP/1.1: what a browser without streams can do."""

import base64
import http.client
import struct
from contextlib import closing

import pytest
from google.rpc import error_details_pb2, status_pb2
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import sessions_pb2 as calls

BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"


def call(gateway, kind, method, message):
    body = message.SerializeToString()
    body = struct.pack(">BI", 0, len(body)) + body
    if kind == TEXT:
        body = base64.b64encode(body)
    headers = {"content-type": kind, "accept": kind, "x-grpc-web": "1"}
    response = gateway.http("POST", f"/twinspan.v1.Sessions/{method}", body, headers)
    assert response.status == 200
    messages, trailers = [], {}
    for flags, data in frames(response.body, kind):
        if flags & 0x80:
            trailers = dict(line.split(":", 1) for line in data.decode().splitlines())
        else:
            messages.append(data)
    # An error without a message may come in the headers alone.
    get = lambda name: trailers.get(name, response.headers.get(name, "")).strip()  # noqa: E731
    return int(get("grpc-status")), messages, get("grpc-status-details-bin")


def frames(body, kind):
    if kind == TEXT:
        # Every piece may be padded by itself.
        body = b"".join(base64.b64decode(piece + b"=" * (-len(piece) % 4)) for piece in body.replace(b"=", b"= ").split())
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        yield flags, body[5 : 5 + length]
        body = body[5 + length :]


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_a_unary_call(gateway, kind):
    status, [message], _ = call(gateway, kind, "Create", calls.CreateRequest(session_id="web", metadata={"a": "ü"}))
    session = pb.Session.FromString(message)
    assert status == 0 and session.session_id == "web" and session.metadata["a"] == "ü"
    status, [message], _ = call(gateway, kind, "List", calls.ListRequest())
    assert status == 0 and calls.ListResponse.FromString(message).sessions == [session]


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_an_error_has_its_details(gateway, kind):
    status, messages, details = call(gateway, kind, "Get", calls.GetRequest(session_id="none"))
    assert status == 5 and messages == []
    details = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert details.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("SESSION_NOT_FOUND", "twinspan")


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_a_stream_of_the_server(gateway, sessions, kind):
    for text in ["one", "two"]:
        sessions.Publish(calls.PublishRequest(frame=pb.Frame(session_id="s", text=text)))
    with watching(gateway, kind, "s") as response:
        got = [pb.Frame.FromString(data) for data in messages(response, kind, 3)]
    assert [frame.WhichOneof("body") for frame in got] == ["joined", "text", "text"]


def watching(gateway, kind, session):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    body = calls.WatchRequest(session_id=session, after_seq=0).SerializeToString()
    body = struct.pack(">BI", 0, len(body)) + body
    body = base64.b64encode(body) if kind == TEXT else body
    connection.request("POST", "/twinspan.v1.Sessions/Watch", body, {"content-type": kind, "accept": kind})
    response = connection.getresponse()
    assert response.status == 200 and response.headers["content-type"].startswith(kind.removesuffix("+proto"))
    return closing(response)


def messages(response, kind, count):
    """The first messages of a response that goes on."""
    received, found = b"", []
    while len(found) < count:
        received += response.read1(4096)
        whole = received[: len(received) // 4 * 4] if kind == TEXT else received
        try:
            found = [data for _, data in frames(whole, kind)]
        except struct.error:
            continue
    return found[:count]
