"""What the tests of this directory share: a gateway process, and peers on both faces that speak in the same dicts."""

import contextlib
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import admin_pb2_grpc, gateway_pb2_grpc, sessions_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("TWINSPAN_BINARY", ROOT / "target/debug/twinspan"))
# Long, because it is reached only when something is broken, on however slow a machine.
TIMEOUT = 20.0
FACES = ["json", "proto", "grpc"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Gateway:
    """A gateway process of its own. Settings are given as `limits_handshake="1s"`, which is TWINSPAN_LIMITS_HANDSHAKE."""

    command = "serve"

    def __init__(self, log, **settings):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.ws_url = f"ws://{self.address}/v1/ws"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TWINSPAN_")}
        settings.setdefault("data_dir", f"{log}.data")
        environment |= {f"TWINSPAN_{name.upper()}": value for name, value in settings.items()}
        self.log = open(log, "w+b")
        command = [BINARY, self.command, "--listen", self.address]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.process.kill()
            raise

    def _wait_until_ready(self):
        deadline = time.monotonic() + TIMEOUT
        while True:
            assert self.process.poll() is None, f"the gateway did not start:\n{self.logged()}"
            with contextlib.suppress(OSError):
                if self.http("GET", "/readyz").status == 200:
                    return
            assert time.monotonic() < deadline, f"the gateway did not become ready:\n{self.logged()}"
            time.sleep(0.01)

    def logged(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def http(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body=body, headers=dict(headers))
            response = connection.getresponse()
            response.body = response.read()
            return response
        finally:
            connection.close()

    def resident_bytes(self):
        fields = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = next(line for line in fields.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self):
        return self.process.wait(timeout=TIMEOUT)

    def stop(self):
        """Asks it to stop, which it must do by itself and without complaint."""
        try:
            self.terminate()
            code = self.exit_code()
            logged = self.logged()
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()
        assert code == 0, f"exit code {code}:\n{logged}"
        assert "panicked" not in logged, logged


class Ended(Exception):
    """The connection is over: `code` is a WebSocket close code or the name of a gRPC status."""

    def __init__(self, code, reason="", details=None, text=""):
        super().__init__(f"{code} {reason} {details or ''} {text}")
        self.code, self.reason, self.details, self.text = code, reason, details or {}, text


class Peer:
    """A connection. Frames go in and out as dicts in the form of ProtoJSON, whatever the face makes of them."""

    def __init__(self):
        self.seen = []
        self.left = []
        self.count = 0

    def next(self):
        return self.expect(lambda _: True)

    def expect(self, wanted):
        """The first frame that has the field, or that passes the test; others are left for later."""
        test = wanted if callable(wanted) else lambda frame: wanted in frame
        for at, frame in enumerate(self.left):
            if test(frame):
                return self.left.pop(at)
        while not test(frame := self._take()):
            self.left.append(frame)
        return frame

    def _take(self):
        try:
            frame = self.receive(TIMEOUT)
        except TimeoutError:
            raise AssertionError(f"nothing came; what came before: {self.seen[-20:]}") from None
        self.seen.append(frame)
        return frame

    def ended(self):
        """How the connection ends, after what still comes."""
        while True:
            try:
                self.next()
            except Ended as ended:
                return ended

    def send(self, **frame):
        self.send_frame(frame)

    def new_id(self):
        self.count += 1
        return f"{self.face}-{self.count}"

    def ask(self, answer, **frame):
        """Sends a frame and waits for what answers it."""
        frame = {"id": self.new_id()} | frame
        self.send_frame(frame)
        answered = self.expect(lambda got: got.get("replyTo") == frame["id"] and "seq" not in got)
        assert answer in answered, answered
        return answered[answer]

    def join(self, session, **join):
        return self.ask("joined", sessionId=session, join=join)

    def serve(self, role, **serve):
        return self.ask("serving", serve={"role": role} | serve)

    def publish(self, session, **frame):
        """Sends a frame and waits until it is accepted."""
        frame = {"id": self.new_id(), "sessionId": session} | frame
        self.send_frame(frame)
        return self.accepted(frame["id"])

    def accepted(self, id):
        def acks(frame):
            refused = frame.get("replyTo") == id and "error" in frame and "seq" not in frame
            assert not refused, frame
            return any(entry.get("id") == id for entry in frame.get("ack", {}).get("accepted", []))

        ack = self.expect(acks)["ack"]
        return next(entry for entry in ack["accepted"] if entry.get("id") == id)

    def refused(self, **frame):
        """Sends a frame and returns the error that it is refused with."""
        return self.ask("error", **frame)

    def answer(self, request):
        """All replies to a request, up to the last."""
        replies = []
        while not replies or not replies[-1].get("final"):
            replies.append(self.expect(lambda frame: frame.get("replyTo") == request and ("seq" in frame or "error" in frame)))
            assert "seq" in replies[-1], replies[-1]
        return replies

    def request(self):
        """The next request that this worker is handed."""
        return self.expect(lambda frame: frame.get("attempt") and "replyTo" not in frame)

    def reply(self, request, **frame):
        self.send(sessionId=request["sessionId"], replyTo=request["id"], **frame)

    def is_alive(self):
        data = self.new_id()
        return self.ask("pong", ping={"data": data}) == {"data": data}


class Socket(Peer):
    """A WebSocket in one of its two forms."""

    def __init__(self, gateway, face="json", query="", subprotocol=True):
        super().__init__()
        self.face = face
        protocols = [f"twinspan.v1.{face}"] if subprotocol else None
        options = {"proxy": None, "max_size": None, "compression": None, "open_timeout": TIMEOUT}
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(connect(gateway.ws_url + query, subprotocols=protocols, **options))

    def send_frame(self, frame):
        binary = self.face == "proto"
        self.send_raw(ParseDict(frame, pb.Frame()).SerializeToString() if binary else json.dumps(frame))

    def send_raw(self, message):
        self.socket.send(message)

    def receive(self, timeout):
        try:
            message = self.socket.recv(timeout=timeout)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            raise Ended(code, (closed.rcvd.reason if closed.rcvd else "").split(":")[0]) from None
        # The gateway answers in the form that the subprotocol named, and in no other.
        assert isinstance(message, bytes) == (self.face == "proto"), message
        return MessageToDict(pb.Frame.FromString(message)) if self.face == "proto" else json.loads(message)

    def close(self):
        self.stack.close()

    def vanish(self):
        """Goes away without a word."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)


class Stream(Peer):
    """A Gateway.Attach stream."""

    face = "grpc"

    def __init__(self, gateway):
        super().__init__()
        self.channel = channel(gateway)
        attach = self.channel.stream_stream(
            "/twinspan.v1.Gateway/Attach", request_serializer=bytes, response_deserializer=pb.Frame.FromString
        )
        self.outgoing = queue.SimpleQueue()
        self.incoming = queue.SimpleQueue()
        self.closing = False
        self.call = attach(iter(self.outgoing.get, None))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        try:
            for frame in self.call:
                self.incoming.put(MessageToDict(frame))
            self.incoming.put(Ended("OK"))
        except grpc.RpcError as error:
            if not self.closing:
                self.incoming.put(refusal(error))

    def send_frame(self, frame):
        self.send_raw(ParseDict(frame, pb.Frame()).SerializeToString())

    def send_raw(self, message):
        self.outgoing.put(message)

    def receive(self, timeout):
        try:
            received = self.incoming.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(received, Ended):
            self.incoming.put(received)
            raise received
        return received

    def half_close(self):
        self.outgoing.put(None)

    def close(self):
        self.closing = True
        self.half_close()
        self.call.cancel()
        self.channel.close()
        self.reader.join(TIMEOUT)

    def vanish(self):
        """Goes away without a word: it does not even say that nothing more will come."""
        self.closing = True
        self.call.cancel()


def peer(gateway, face):
    return Stream(gateway) if face == "grpc" else Socket(gateway, face)


def channel(gateway):
    # A proxy of the environment's is not for this machine; channels of their own keep connections apart.
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(gateway.address, options=options)


def sessions(grpc_channel):
    return sessions_pb2_grpc.SessionsStub(grpc_channel)


def admin(grpc_channel):
    return admin_pb2_grpc.AdminStub(grpc_channel)


def gateway_stub(grpc_channel):
    return gateway_pb2_grpc.GatewayStub(grpc_channel)


def refusal(error):
    """A gRPC error with the google.rpc.ErrorInfo of its details."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        if detail.Unpack(info):
            assert info.domain == "twinspan"
    return Ended(error.code().name, info.reason, dict(info.metadata), error.details())


class Worker:
    """clients/examples/worker.py, as a process of its own."""

    def __init__(self, gateway, role="brain"):
        generated = str(ROOT / "tests/.gen")
        command = [sys.executable, ROOT / "clients/examples/worker.py", gateway.address, role]
        environment = os.environ | {"PYTHONPATH": generated, "PYTHONUNBUFFERED": "1", "no_proxy": "127.0.0.1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("serving"), f"the worker said {line!r}"

    def stop(self):
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()


class Relay:
    """A way to the gateway that can be cut, and mends at once."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.ws_url = f"ws://{self.address}/v1/ws"
        self.pairs = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.gateway.port))
                self.pairs.append((near, far))
                for one, other in [(near, far), (far, near)]:
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    @staticmethod
    def _pump(one, other):
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                other.sendall(piece)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        while self.pairs:
            for end in self.pairs.pop():
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.close()
        self.cut()
