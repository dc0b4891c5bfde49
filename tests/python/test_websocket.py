"""The WebSocket itself: handshake, pings, close codes."""

import base64
import json
import os
import struct

import pytest
from raw import WebSocket, dial, read_all
from support import Ended, Socket
from twinspan.v1 import frame_pb2 as pb
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
}


@pytest.mark.parametrize(
    ("changed", "status", "answer"),
    [
        ({"Upgrade": None, "Connection": None}, 426, {"upgrade": "websocket"}),
        ({"Upgrade": "h2c"}, 426, {"upgrade": "websocket"}),
        ({"Sec-WebSocket-Version": "8"}, 426, {"sec-websocket-version": "13"}),
        ({"Sec-WebSocket-Version": None}, 426, {"sec-websocket-version": "13"}),
        ({"Connection": "keep-alive"}, 400, {}),
        ({"Sec-WebSocket-Key": None}, 400, {}),
        ({"Sec-WebSocket-Key": "short"}, 400, {}),
        ({"Sec-WebSocket-Protocol": "graphql-ws, mqtt"}, 400, {}),
    ],
)
def test_a_wrong_handshake_gets_an_answer_in_http(gateway, changed, status, answer):
    headers = {name: value for name, value in (HANDSHAKE | changed).items() if value is not None}
    response = gateway.http("GET", "/v1/ws", headers=headers)
    assert response.status == status and response.body.strip()
    assert answer.items() <= {name.lower(): value for name, value in response.headers.items()}.items()


def test_only_get_opens_a_websocket(gateway):
    assert gateway.http("POST", "/v1/ws", headers=HANDSHAKE).status == 400


def test_a_wrong_subprotocol_is_told_in_the_handshake(gateway):
    with pytest.raises(InvalidStatus) as caught:
        connect(gateway.ws_url, subprotocols=["twinspan.v2.json"], proxy=None)
    assert caught.value.response.status_code == 400
    assert b"twinspan.v1.json" in caught.value.response.body


def test_the_first_known_subprotocol_of_the_client_is_taken(gateway):
    for offered in [["twinspan.v1.proto", "twinspan.v1.json"], ["x", "twinspan.v1.json", "twinspan.v1.proto"]]:
        with connect(gateway.ws_url, subprotocols=offered, proxy=None) as socket:
            assert socket.subprotocol == next(name for name in offered if name.startswith("twinspan"))


@pytest.mark.parametrize(
    ("query", "reason", "field"),
    [
        ("?session=x", "UNKNOWN_FIELD", "session"),
        ("?session_id=not%20a%20name", "INVALID_FIELD", "session_id"),
        ("?session_id=s&after_seq=first", "INVALID_FIELD", "after_seq"),
        ("?session_id=s&role=gateway", "INVALID_FIELD", "join.role"),
        ("?role=x", "INVALID_FIELD", "session_id"),
    ],
)
def test_a_wrong_url_is_refused_with_a_frame(gateway, query, reason, field):
    peer = Socket(gateway, query=query)
    error = peer.next()["error"]
    assert (error["reason"], error["details"]["field"]) == (reason, field)
    assert peer.is_alive()
    peer.close()


def test_a_binary_message_is_protobuf_on_any_socket(gateway):
    """The subprotocol says how the gateway answers, not what it reads."""
    peer = Socket(gateway, "json")
    peer.send_raw(pb.Frame(id="b", ping=pb.Ping(data="x")).SerializeToString())
    assert peer.next() == {"replyTo": "b", "pong": {"data": "x"}}
    peer.close()


def test_pings_are_answered_also_between_the_pieces_of_a_message(gateway):
    socket = WebSocket(gateway)
    message = json.dumps({"id": "p", "ping": {"data": "whole"}}).encode()
    socket.send(1, message[:10], fin=False)
    socket.send(9, b"are you there?")
    assert socket.receive() == (10, b"are you there?")
    socket.send(0, message[10:])
    opcode, payload = socket.receive()
    assert opcode == 1 and json.loads(payload)["pong"] == {"data": "whole"}


def test_a_message_may_come_a_byte_at_a_time(gateway):
    socket = WebSocket(gateway)
    message = json.dumps({"id": "p", "ping": {"data": "ü"}}, ensure_ascii=False).encode()
    frame = bytes([0x81, 0x80 | len(message)]) + bytes(4) + message
    for byte in frame:
        socket.socket.sendall(bytes([byte]))
    assert json.loads(socket.receive()[1])["pong"] == {"data": "ü"}


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_close_is_answered(gateway, code):
    socket = WebSocket(gateway)
    socket.send(8, struct.pack(">H", code) + b"bye")
    assert socket.close_code() in (code, 1000)


def test_a_close_without_a_code_is_answered(gateway):
    socket = WebSocket(gateway)
    socket.send(8)
    assert socket.close_code() in (1000, 1005)


VIOLATIONS = {
    "not masked": (1002, lambda socket: socket.send(1, b"{}", masked=False)),
    "a reserved bit": (1002, lambda socket: socket.send(1, b"{}", reserved=4)),
    "a reserved opcode": (1002, lambda socket: socket.send(3, b"{}")),
    "a reserved control opcode": (1002, lambda socket: socket.send(11)),
    "a continuation of nothing": (1002, lambda socket: socket.send(0, b"{}")),
    "a message in a message": (1002, lambda socket: (socket.send(1, b"{", fin=False), socket.send(1, b"}"))),
    "a ping in pieces": (1002, lambda socket: socket.send(9, b"x", fin=False)),
    "a ping that is too long": (1002, lambda socket: socket.send(9, b"x" * 126)),
    "half a close code": (1002, lambda socket: socket.send(8, b"\x03")),
    "text that is not UTF-8": (1007, lambda socket: socket.send(1, b'{"text":"\xff"}')),
    "a lone surrogate in UTF-8": (1007, lambda socket: socket.send(1, b'{"text":"\xed\xa0\x80"}')),
    "a frame that is too large": (1009, lambda socket: socket.send(1, b"x", length=(1 << 20) + 1)),
    "a frame of 2^62 bytes": (1009, lambda socket: socket.send(2, b"x", length=1 << 62)),
    "a message that grows too large": (1009, lambda socket: grow(socket)),
}


def grow(socket):
    for number in range(5):
        socket.send(0 if number else 1, b"x" * (1 << 18), fin=False)


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_broken_rule_ends_the_connection_with_its_code(gateway, bystanders, violation):
    code, break_it = VIOLATIONS[violation]
    socket = WebSocket(gateway)
    try:
        break_it(socket)
    except ConnectionError:
        pass
    assert socket.close_code() == code


def test_a_connection_may_end_without_a_close(gateway, bystanders):
    for payload in [b"", bytes([0x81]), bytes([0x81, 0xFE, 0x00])]:
        socket = WebSocket(gateway)
        socket.socket.sendall(payload)
        socket.socket.close()


def test_the_close_code_after_a_good_close_is_1000(gateway):
    peer = Socket(gateway)
    peer.is_alive()
    peer.close()
    with pytest.raises(Ended) as ended:
        peer.next()
    assert ended.value.code == 1000


def test_http_1_pipelines_into_the_websocket(gateway):
    """Frames that come in one packet with the handshake are not lost."""
    connection = dial(gateway)
    head = "GET /v1/ws?session_id=s HTTP/1.1\r\nHost: x\r\n" + "".join(f"{k}: {v}\r\n" for k, v in HANDSHAKE.items()) + "\r\n"
    message = b'{"id":"p","ping":{}}'
    close = bytes([0x88, 0x82]) + bytes(4) + struct.pack(">H", 1000)
    connection.sendall(head.encode() + bytes([0x81, 0x80 | len(message)]) + bytes(4) + message + close)
    received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 101 ") and b'"joined"' in received and b'"pong"' in received
