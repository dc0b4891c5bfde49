"""Tokens, keys and TLS, from outside: a token that another library has made, stock grpcio, stock WebSockets, and the commands."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import time

import grpc
import pytest
from support import BINARY, TIMEOUT, refusal, sessions
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import gateway_pb2_grpc, sessions_pb2
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

SECRET = b"0123456789abcdef0123456789abcdef"
GRANTS = [{"sessions": ["user:{sub}:*"], "can": ["read", "send", "create", "request"]}]


def part(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def token(subject="ann", grants=GRANTS, ttl=600):
    """RFC 7515, by hand."""
    now = int(time.time())
    claims = {"iss": "https://app.example.com", "aud": "twinspan", "sub": subject, "iat": now, "exp": now + ttl, "twinspan": grants}
    signed = b".".join(part(json.dumps(thing).encode()) for thing in [{"alg": "HS256", "typ": "JWT"}, claims])
    return (signed + b"." + part(hmac.new(SECRET, signed, hashlib.sha256).digest())).decode()


@pytest.fixture
def guarded(start, tmp_path):
    secret = tmp_path / "jwt.secret"
    secret.write_bytes(SECRET + b"\n")
    secret.chmod(0o600)
    issuer = '[{{ issuer = "https://app.example.com", audience = ["twinspan"], algorithms = ["HS256"], secret_file = "{}" }}]'
    return start(auth_issuers=issuer.format(secret))


def bearer(secret):
    return [("authorization", f"Bearer {secret}")]


def test_a_backend_shows_its_token_in_its_metadata(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        frames = [pb.Frame(id="x", session_id="user:ann:1", text="hello")]
        call = gateway_pb2_grpc.GatewayStub(channel).Attach(iter(frames), metadata=bearer(token()), timeout=TIMEOUT)
        assert [entry.seq for entry in next(iter(call)).ack.accepted] == [1]
        stub = sessions(channel)
        get = sessions_pb2.GetRequest(session_id="user:ann:1")
        assert stub.Get(get, metadata=bearer(token()), timeout=TIMEOUT).head_seq == 1
        for metadata, code, reason in [
            (None, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
            (bearer("nonsense"), grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
            (bearer(token(ttl=-60)), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
            (bearer(token("bob")), grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ]:
            with pytest.raises(grpc.RpcError) as error:
                stub.Get(get, metadata=metadata, timeout=TIMEOUT)
            assert error.value.code() == code
            assert refusal(error.value).reason == reason


def test_a_page_shows_its_token_among_its_subprotocols(guarded):
    url = f"{guarded.ws_url}?session_id=user:ann:1"
    with connect(url, subprotocols=["twinspan.v1.json", f"twinspan.bearer.{token()}"]) as socket:
        assert socket.subprotocol == "twinspan.v1.json"
        assert json.loads(socket.recv(TIMEOUT))["joined"]["epoch"]
        socket.send('{"id":"x","sessionId":"user:bob:1","text":"not mine"}')
        assert json.loads(socket.recv(TIMEOUT))["error"]["reason"] == "PERMISSION_DENIED"


def test_a_page_says_hello_with_its_token(guarded):
    with connect(guarded.ws_url) as socket:
        socket.send(json.dumps({"id": "h", "hello": {"token": token()}}))
        welcome = json.loads(socket.recv(TIMEOUT))["welcome"]
        assert welcome["subject"] == "ann" and welcome["expiresAt"]


def test_a_bad_token_is_told_by_a_close_code(guarded):
    for secret, code in [("nonsense", 4500), (token(ttl=-60), 4002)]:
        with connect(guarded.ws_url, subprotocols=["twinspan.v1.json", f"twinspan.bearer.{secret}"]) as socket:
            assert json.loads(socket.recv(TIMEOUT))["error"]["message"]
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(TIMEOUT)
            assert closed.value.rcvd.code == code


def command(gateway, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TWINSPAN_")}
    command = [BINARY, *arguments, "--url", f"http://{gateway.address}"]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=TIMEOUT)


def test_the_commands_show_a_token(guarded, tmp_path):
    path = tmp_path / "ann.token"
    path.write_text(token() + "\n")
    send = ["send", "user:ann:notes", "--text", "hello"]
    assert command(guarded, *send, "--token-file", str(path)).stdout.endswith(" 1\n")
    assert command(guarded, *send, TWINSPAN_TOKEN=token()).stdout.endswith(" 2\n")
    refused = command(guarded, *send)
    assert refused.returncode == 1 and "UNAUTHENTICATED" in refused.stderr
    denied = command(guarded, "revoke", "--subject", "ann", TWINSPAN_TOKEN=token())
    assert denied.returncode == 1 and "PERMISSION_DENIED" in denied.stderr
    boss = token("boss", [{"can": ["admin"]}])
    revoked = command(guarded, "revoke", "--subject", "ann", "--for", "1h", TWINSPAN_TOKEN=boss)
    assert "subject ann" in revoked.stdout and "forgotten" in revoked.stdout
    gone = command(guarded, *send, "--token-file", str(path))
    assert gone.returncode == 1 and "TOKEN_REVOKED" in gone.stderr
