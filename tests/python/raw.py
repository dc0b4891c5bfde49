"""Bytes on a socket, for what well-behaved clients cannot send."""

import base64
import os
import socket
import struct

from support import TIMEOUT, Ended


def dial(gateway):
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=TIMEOUT)


def read_all(connection):
    """What the other side still says before it closes."""
    received = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not piece:
            return received
        received += piece


class WebSocket:
    """RFC 6455 by hand."""

    def __init__(self, gateway, subprotocol=None):
        self.socket = dial(gateway)
        self.buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            "GET /v1/ws HTTP/1.1",
            f"Host: {gateway.address}",
            "Upgrade: websocket",
            "Connection: keep-alive, Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        if subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 101 "), head

    def _more(self):
        piece = self.socket.recv(65536)
        if not piece:
            raise Ended(None)
        return piece

    def _take(self, count):
        while len(self.buffer) < count:
            self.buffer += self._more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def send(self, opcode, payload=b"", *, fin=True, reserved=0, masked=True, length=None):
        length = len(payload) if length is None else length
        head = bytes([fin << 7 | reserved << 4 | opcode])
        mask_bit = masked << 7
        if length < 126:
            head += bytes([mask_bit | length])
        elif length < 1 << 16:
            head += struct.pack(">BH", mask_bit | 126, length)
        else:
            head += struct.pack(">BQ", mask_bit | 127, length)
        if masked:
            head += bytes(4)  # The mask that changes nothing.
        self.socket.sendall(head + payload)

    def receive(self):
        """Opcode and payload of the next frame."""
        first, second = self._take(2)
        assert not second & 0x80, "a server must not mask"
        assert not first & 0x70, "no extension was agreed on"
        length = second & 0x7F
        if length == 126:
            [length] = struct.unpack(">H", self._take(2))
        elif length == 127:
            [length] = struct.unpack(">Q", self._take(8))
        return first & 0x0F, self._take(length)

    def close_code(self):
        """The code of the close frame; after it the other side must close, or at least say nothing more."""
        while True:
            opcode, payload = self.receive()
            if opcode == 8:
                code = struct.unpack(">H", payload[:2])[0] if payload else 1005
                self.socket.shutdown(socket.SHUT_WR)
                assert read_all(self.socket) == b""
                return code
