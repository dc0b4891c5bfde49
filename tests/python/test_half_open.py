"""Peers that connect and do not go on: the gateway does not wait for them for ever."""

import pytest
from raw import WebSocket, dial, read_all
from support import Socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture
def gateway(start):
    return start(limits_handshake="1s")


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"G",
        b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n",
        b"PRI * HTTP/2.0\r\n",
        PREFACE,
        PREFACE + SETTINGS,
        PREFACE + SETTINGS + b"\x00\x00\x05\x01\x00\x00\x00\x00\x01\x82",
    ],
    ids=["nothing", "one byte", "half a handshake", "half a preface", "a preface", "settings", "half a header"],
)
def test_a_handshake_that_stops_half_way_is_closed(gateway, bystanders, begun):
    connection = dial(gateway)
    connection.sendall(begun)
    answer = read_all(connection)
    assert b"HTTP/1.1 2" not in answer and b"HTTP/1.1 101" not in answer


def test_a_half_open_handshake_does_not_wait_with_others(gateway, bystanders):
    waiting = [dial(gateway) for _ in range(50)]
    peer = Socket(gateway)
    assert peer.is_alive()
    for connection in waiting:
        assert read_all(connection) == b""
    # The time for the handshake is over for those who are through it as well, and does not matter to them.
    assert peer.is_alive()
    peer.close()


def test_a_peer_that_shows_no_life_is_pinged_and_then_told(start, bystanders):
    """A raw socket answers no pings by itself."""
    gateway = start(limits_heartbeat="1s")
    socket = WebSocket(gateway)
    opcodes = []
    while not opcodes or opcodes[-1] != 8:
        opcode, payload = socket.receive()
        opcodes.append(opcode)
    assert opcodes[0] == 9
    assert payload[:2] == (4000).to_bytes(2) and payload[2:].startswith(b"HEARTBEAT_TIMEOUT")


def test_a_peer_that_answers_pings_may_be_silent(start):
    gateway = start(limits_heartbeat="1s")
    socket = WebSocket(gateway)
    for _ in range(4):
        opcode, payload = socket.receive()
        assert opcode == 9
        socket.send(10, payload)
