"""Garbage on either face: a typed error to the one who sent it, and nobody else notices."""

import json
import struct

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from raw import dial, read_all
from support import channel, refusal
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import sessions_pb2 as calls

pytestmark = pytest.mark.usefixtures("bystanders")


def field(number, kind, payload=b""):
    """A protobuf field by hand."""
    tag = varint(number << 3 | kind)
    return tag + (varint(len(payload)) + payload if kind == 2 else payload)


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def nested(depth):
    """google.protobuf.Value: lists in lists."""
    value = field(1, 0, b"\x00")
    for _ in range(depth):
        value = field(6, 2, field(1, 2, value))
    return field(16, 2, value)


ID, SESSION = field(1, 2, b"bad"), field(2, 2, b"s")

PROTOBUF = {
    "a truncated field": ("MALFORMED_FRAME", ID + b"\x12\x7fs"),
    "a truncated tag": ("MALFORMED_FRAME", ID + b"\x80"),
    "a truncated payload": ("MALFORMED_FRAME|INVALID_PAYLOAD", ID + SESSION + field(16, 2, b"\x1a\x05ab")),
    "a length of 2^63": ("MALFORMED_FRAME", ID + b"\x12" + varint(1 << 63)),
    "a varint without end": ("MALFORMED_FRAME", ID + b"\xff" * 20),
    "field number 0": ("MALFORMED_FRAME", ID + b"\x00\x00"),
    "a group without end": ("MALFORMED_FRAME", ID + field(3, 3)),
    "an end without a group": ("MALFORMED_FRAME", ID + field(3, 4)),
    "groups in groups": ("MALFORMED_FRAME", ID + field(99, 3) * 100_000),
    "a wrong wire type": ("MALFORMED_FRAME", ID + field(2, 0, b"\x01")),
    "text that is not UTF-8": ("MALFORMED_FRAME|INVALID_FIELD|INVALID_UTF8", ID + SESSION + field(19, 2, b"\xff\xfe")),
    "a name that is not UTF-8": ("MALFORMED_FRAME|INVALID_FIELD|INVALID_UTF8", ID + field(2, 2, b"\xc3\x28")),
    "a payload that is not UTF-8": ("INVALID_PAYLOAD", ID + SESSION + field(16, 2, field(3, 2, b"\xed\xa0\x80"))),
    "a key that is not UTF-8": (
        "INVALID_PAYLOAD",
        ID + SESSION + field(16, 2, field(5, 2, field(1, 2, field(1, 2, b"\xff") + field(2, 2, field(3, 2, b"v"))))),
    ),
    "a payload too deep": ("INVALID_PAYLOAD", ID + SESSION + nested(33)),
    "a payload much too deep": ("INVALID_PAYLOAD", ID + SESSION + nested(20_000)),
    "not a number": ("INVALID_PAYLOAD", ID + SESSION + field(16, 2, field(2, 1, struct.pack("<d", float("nan"))))),
    "infinity": ("INVALID_PAYLOAD", ID + SESSION + field(16, 2, field(2, 1, struct.pack("<d", float("inf"))))),
    "NUL in a name": ("INVALID_FIELD", ID + field(2, 2, b"s\x00")),
    "not protobuf": ("MALFORMED_FRAME", b"GET / HTTP/1.1\r\n\r\n"),
}

DEEP = "[" * 33 + "]" * 33
MUCH_TOO_DEEP = "[" * 400_000

JSON = {
    "nothing": ("MALFORMED_FRAME", ""),
    "a truncated object": ("MALFORMED_FRAME", '{"id":"bad","text":"x'),
    "a list": ("MALFORMED_FRAME", '[{"id":"x"}]'),
    "a number": ("MALFORMED_FRAME", "42"),
    "null": ("MALFORMED_FRAME", "null"),
    "two objects": ("MALFORMED_FRAME", '{"id":"bad"}{"id":"x"}'),
    "a comment": ("MALFORMED_FRAME", '{"id":"bad"/**/}'),
    "a trailing comma": ("MALFORMED_FRAME", '{"id":"bad",}'),
    "single quotes": ("MALFORMED_FRAME", "{'id':'bad'}"),
    "an unknown field": ("UNKNOWN_FIELD", '{"id":"bad","sesionId":"s","text":"x"}'),
    "an unknown field within": ("UNKNOWN_FIELD", '{"id":"bad","join":{"after":"1"}}'),
    "a field of a wrong kind": ("MALFORMED_FRAME|INVALID_FIELD", '{"id":"bad","sessionId":5}'),
    "a number that is none": ("MALFORMED_FRAME|INVALID_FIELD", '{"id":"bad","seq":"x"}'),
    "a number too large": ("MALFORMED_FRAME|INVALID_FIELD", '{"id":"bad","seq":"18446744073709551616"}'),
    "no base64": ("MALFORMED_FRAME|INVALID_FIELD", '{"id":"bad","sessionId":"s","data":"!!!"}'),
    "a name twice": ("MALFORMED_FRAME", '{"id":"bad","sessionId":"s","text":"a","text":"b"}'),
    "two bodies": ("MALFORMED_FRAME", '{"id":"bad","sessionId":"s","text":"a","payload":1}'),
    "a payload too deep": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":' + DEEP + "}"),
    "a payload much too deep": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":' + MUCH_TOO_DEEP),
    "a frame much too deep": ("MALFORMED_FRAME|UNKNOWN_FIELD", '{"id":"bad","x":' + MUCH_TOO_DEEP),
    "a key twice in a payload": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":{"a":1,"b":{},"a":2}}'),
    "a key twice, spelled differently": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":{"a":1,"\\u0061":2}}'),
    "not a number": ("MALFORMED_FRAME|INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":NaN}'),
    "a number too large for a double": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":[1e999]}'),
    "a number with a leading zero": ("MALFORMED_FRAME|INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":01}'),
    "a lone surrogate in a payload": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":"\\ud800"}'),
    "surrogates the wrong way round": ("INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":"\\udc00\\ud800"}'),
    "a lone surrogate in text": ("MALFORMED_FRAME|INVALID_FIELD", '{"id":"bad","sessionId":"s","text":"\\udc00"}'),
    "a raw NUL": ("MALFORMED_FRAME", '{"id":"bad",\x00"text":"x"}'),
    "a raw line break in text": ("MALFORMED_FRAME|INVALID_PAYLOAD", '{"id":"bad","sessionId":"s","payload":"\n"}'),
    "NUL in a name": ("INVALID_FIELD", '{"id":"bad","sessionId":"s\\u0000","text":"x"}'),
    "too much metadata": ("INVALID_FIELD", json.dumps({"id": "bad", "sessionId": "s", "metadata": {str(n): "" for n in range(33)}})),
}

OUT_OF_PLACE = {
    "a frame that only the gateway sends": ("UNEXPECTED_FRAME", {"welcome": {}}),
    "an ack": ("UNEXPECTED_FRAME", {"ack": {}}),
    "no session": ("INVALID_FIELD", {"text": "x"}),
    "leaving where one is not": ("SESSION_NOT_FOUND|NOT_A_MEMBER", {"sessionId": "s", "leave": {}}),
    "a reply to nothing": ("SESSION_NOT_FOUND|REQUEST_NOT_FOUND", {"sessionId": "nowhere", "replyTo": "q", "text": "x"}),
    "to everybody at once": ("INVALID_FIELD", {"sessionId": "s", "text": "x", "to": {"role": "a", "memberId": "b"}}),
    "options without a request": ("INVALID_FIELD", {"sessionId": "s", "text": "x", "options": {}}),
    "a timeout below 0": ("INVALID_FIELD", {"sessionId": "s", "to": {"role": "a"}, "options": {"timeouts": {"total": "-1s"}}}),
    "an ephemeral request": ("INVALID_FIELD", {"sessionId": "s", "to": {"role": "a"}, "ephemeral": True}),
    "the gateway's role": ("INVALID_FIELD", {"sessionId": "s", "join": {"role": "gateway"}}),
    "no role to serve": ("INVALID_FIELD", {"serve": {}}),
    "a cancel of nothing": ("INVALID_FIELD|SESSION_NOT_FOUND", {"sessionId": "s", "cancel": {}}),
}


def check_refusal(peer, reasons, id="bad"):
    frame = peer.expect("error")
    error = frame["error"]
    assert error["reason"] in reasons.split("|"), error
    assert error["message"] and "seq" not in frame
    assert frame.get("replyTo", id) == id, "the error names what it answers, or nothing"
    assert peer.is_alive()
    return frame


@pytest.mark.parametrize("garbage", PROTOBUF)
@pytest.mark.parametrize("face", ["proto", "grpc"])
def test_what_is_not_a_frame_in_protobuf_is_refused(attach, face, garbage):
    reasons, message = PROTOBUF[garbage]
    peer = attach(face)
    peer.send_raw(message)
    check_refusal(peer, reasons)


@pytest.mark.parametrize("garbage", JSON)
def test_what_is_not_a_frame_in_json_is_refused(attach, garbage):
    reasons, message = JSON[garbage]
    peer = attach("json")
    peer.send_raw(message)
    check_refusal(peer, reasons)


@pytest.mark.parametrize("garbage", OUT_OF_PLACE)
def test_what_is_out_of_place_is_refused(attach, face, garbage):
    reasons, frame = OUT_OF_PLACE[garbage]
    peer = attach(face)
    peer.send(id="bad", **frame)
    assert check_refusal(peer, reasons)["replyTo"] == "bad"


@pytest.mark.parametrize("id", ["a\x00b", "two words", "ü", "x" * 129], ids=["NUL", "a space", "not ASCII", "too long"])
def test_a_wrong_id_is_refused(attach, face, id):
    peer = attach(face)
    peer.send(id=id, sessionId="s", text="x")
    assert check_refusal(peer, "INVALID_FIELD", id)["error"]["details"]["field"] == "id"


def test_an_unknown_field_is_named_or_ignored_as_one_likes(attach):
    peer = attach("json")
    peer.send_raw('{"id":"bad","sessionId":"s","new_field":{"a":[1]},"text":"x"}')
    error = peer.expect("error")
    assert error["replyTo"] == "bad" and error["error"]["details"]["field"] == "new_field"
    assert peer.ask("welcome", hello={"ignoreUnknown": True})["ignoreUnknown"] is True
    peer.send_raw('{"id":"good","sessionId":"s","new_field":{"a":[1]},"text":"x"}')
    assert peer.accepted("good")["seq"] == "1"


def test_unknown_fields_of_protobuf_are_dropped(attach):
    reader = attach("grpc")
    reader.join("s")
    for face in ["proto", "grpc"]:
        attach(face).send_raw(SESSION + field(19, 2, b"x") + field(1000, 2, b"later") + field(1001, 0, b"\x01"))
        assert reader.expect("text")["text"] == "x"


def test_a_frame_that_is_too_large_ends_the_connection(attach, face):
    peer = attach(face)
    peer.send(sessionId="s", text="x" * (1 << 20))
    ended = peer.ended()
    if face == "grpc":
        assert (ended.code, ended.reason) == ("RESOURCE_EXHAUSTED", "FRAME_TOO_LARGE")
        assert ended.details["limit"] == str(1 << 20)
    else:
        assert (ended.code, ended.reason) == (1009, "FRAME_TOO_LARGE")


def test_a_frame_that_just_fits_is_taken(attach, face):
    peer = attach(face)
    peer.join("s")
    text = "x" * ((1 << 20) - 200)
    peer.send(sessionId="s", text=text)
    assert peer.expect("text")["text"] == text


def test_a_frame_that_fits_in_one_form_reaches_members_of_the_other(attach):
    """Base64 and escapes make JSON longer than protobuf; what was accepted is delivered all the same."""
    sender, readers = attach("grpc"), [attach(face) for face in ["json", "proto", "grpc"]]
    for reader in readers:
        reader.join("s")
    sender.send(sessionId="s", text="\x01" * 1_000_000)
    for reader in readers:
        assert reader.expect("text")["text"] == "\x01" * 1_000_000


def test_a_call_with_garbage_is_refused(gateway, sessions):
    with channel(gateway) as connection:
        get = connection.unary_unary("/twinspan.v1.Sessions/Get")
        for garbage in [b"\x0a\x7f", b"\xff" * 20, b"\x0a\x02\xff\xfe"]:
            with pytest.raises(grpc.RpcError) as caught:
                get(garbage, timeout=20)
            assert caught.value.code() != grpc.StatusCode.UNAVAILABLE
        publish = connection.unary_unary("/twinspan.v1.Sessions/Publish")
        for garbage, reason in [(nested(33), "INVALID_PAYLOAD"), (field(2, 2, b"\x00"), "INVALID_FIELD")]:
            with pytest.raises(grpc.RpcError) as caught:
                publish(field(1, 2, SESSION + garbage), timeout=20)
            error = refusal(caught.value)
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason), error
        assert sessions.List(calls.ListRequest(prefix="s")).sessions == []


class Http2:
    """An h2 connection with one stream to a method."""

    def __init__(self, gateway, path, content_type="application/grpc"):
        self.socket = dial(gateway)
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", gateway.address)]
        self.h2.send_headers(1, [*headers, ("content-type", content_type), ("te", "trailers")])
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def send(self, data, end=False):
        self.h2.send_data(1, data, end_stream=end)
        self.flush()

    def headers(self):
        """All headers and trailers until the stream is over."""
        found = {}
        while True:
            received = self.socket.recv(65536)
            assert received, "the connection was closed"
            for event in self.h2.receive_data(received):
                if isinstance(event, (ResponseReceived, TrailersReceived)):
                    found |= {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, 1)
                elif isinstance(event, (StreamEnded, StreamReset)):
                    return found
            self.flush()


@pytest.mark.parametrize("path", ["/twinspan.v1.Gateway/Attach", "/twinspan.v1.Sessions/Publish"])
@pytest.mark.parametrize("length", [64 << 20, 0xFFFFFFFF])
def test_a_length_prefix_is_not_believed(gateway, path, length):
    before = gateway.resident_bytes()
    connection = Http2(gateway, path)
    connection.send(struct.pack(">BI", 0, length) + b"x" * 100)
    headers = connection.headers()
    assert headers[":status"] == "200"
    # What tonic itself refuses before the gateway sees it.
    allowed = {"8"} if path.endswith("Attach") else {"8", "11"}
    assert headers["grpc-status"] in allowed, headers
    assert gateway.resident_bytes() - before < 16 << 20
    connection.socket.close()


def test_a_compressed_message_that_nobody_agreed_on_is_refused(gateway):
    connection = Http2(gateway, "/twinspan.v1.Gateway/Attach")
    connection.send(struct.pack(">BI", 1, 3) + b"xyz")
    assert connection.headers()["grpc-status"] in {"3", "12", "13"}
    connection.socket.close()


def test_a_message_that_ends_too_soon_is_no_message(gateway):
    connection = Http2(gateway, "/twinspan.v1.Gateway/Attach")
    connection.send(struct.pack(">BI", 0, 100) + b"x", end=True)
    assert connection.headers()["grpc-status"] != "0"
    connection.socket.close()


def test_a_message_may_come_a_byte_at_a_time(gateway):
    connection = Http2(gateway, "/twinspan.v1.Gateway/Attach")
    message = pb.Frame(id="p", ping=pb.Ping(data="x")).SerializeToString()
    for byte in struct.pack(">BI", 0, len(message)) + message:
        connection.send(bytes([byte]))
    connection.send(b"", end=True)
    assert connection.headers()["grpc-status"] == "0"
    connection.socket.close()


def test_another_content_type_is_not_grpc(gateway):
    connection = Http2(gateway, "/twinspan.v1.Gateway/Attach", content_type="application/json")
    connection.send(b"{}", end=True)
    assert connection.headers()[":status"] in {"415", "200"}
    connection.socket.close()


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, b"\x00" * 1000, b"\xff" * 1000, b"HELLO\r\n\r\n", b"SSH-2.0-x\r\n"],
    ids=["TLS", "NUL", "ff", "no HTTP", "SSH"],
)
def test_what_is_not_http_is_closed(gateway, noise):
    connection = dial(gateway)
    connection.sendall(noise)
    answer = read_all(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ") or answer[3:4] in (b"\x04", b"\x07"), answer


def test_a_flood_of_refusals_is_only_the_senders_problem(gateway, attach):
    flooder, other = attach("json"), attach("grpc")
    for number in range(2000):
        flooder.send_raw("garbage")
        if number % 100 == 0:
            assert other.is_alive()
    assert sum("error" in flooder.next() for _ in range(2000)) == 2000

