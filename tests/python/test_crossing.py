"""The messages of the examples, word for word, from a bare `websockets` client, answered by a worker in plain grpcio."""

import json

import pytest
import worker as example
from support import Socket
from twinspan.v1 import frame_pb2 as pb
from websockets.sync.client import connect

EXACT = '{"id":"msg-123","type":"query","sessionId":"sess-456","payload":{"action":"search","query":"HEA synthesis"}}'
PROTO_NAMES = EXACT.replace("sessionId", "session_id")
NO_SESSION = EXACT.replace('"sessionId":"sess-456",', "")
SOURCE = example.answer("HEA synthesis") + " "


def check(replies):
    *chunks, last = replies
    assert len(chunks) == len(SOURCE.split())
    assert "".join(chunk["text"] for chunk in chunks) == SOURCE
    assert [chunk["index"] for chunk in chunks] == list(range(len(chunks)))
    assert {chunk["type"] for chunk in chunks} == {"stream_chunk"}
    assert all(chunk["attempt"] == 1 and "final" not in chunk for chunk in chunks)
    assert last["final"] is True and last["type"] == "stream_end" and "error" not in last
    assert all(frame["replyTo"] == "msg-123" and frame["sessionId"] == "sess-456" for frame in replies)
    assert all(frame["from"]["role"] == "brain" and frame["timestamp"].endswith("Z") for frame in replies)
    numbers = [int(frame["seq"]) for frame in replies]
    assert numbers == list(range(2, 2 + len(replies)))


@pytest.mark.parametrize("message", [EXACT, PROTO_NAMES], ids=["sessionId", "session_id"])
@pytest.mark.parametrize("subprotocols", [None, ["twinspan.v1.json"], ["graphql-ws", "twinspan.v1.json"]])
def test_a_bare_socket_is_answered(gateway, worker, message, subprotocols):
    with connect(gateway.ws_url, subprotocols=subprotocols, proxy=None) as socket:
        assert socket.subprotocol == (subprotocols and "twinspan.v1.json")
        socket.send(message)
        replies, acked = [], []
        while not replies or "final" not in replies[-1]:
            frame = json.loads(socket.recv(timeout=20))
            if "ack" in frame:
                acked += frame["ack"]["accepted"]
            else:
                replies.append(frame)
        assert acked == [{"sessionId": "sess-456", "id": "msg-123", "seq": "1"}]
        check(replies)


@pytest.mark.parametrize("face", ["json", "proto"])
@pytest.mark.parametrize("message", [EXACT, PROTO_NAMES, NO_SESSION], ids=["sessionId", "session_id", "of the URL"])
def test_a_socket_that_names_its_session_in_the_url_is_answered(gateway, worker, face, message):
    peer = Socket(gateway, face, query="?session_id=sess-456", subprotocol=face != "json")
    joined = peer.next()["joined"]
    assert joined["role"] == "client" and joined["firstSeq"] == "1" and "headSeq" not in joined
    peer.send_frame(json.loads(message))
    own = peer.expect(lambda frame: frame.get("id") == "msg-123" and "payload" in frame)
    assert own["payload"] == {"action": "search", "query": "HEA synthesis"} and own["to"] == {"role": "brain"}
    check(peer.answer("msg-123"))
    peer.close()


def test_the_generated_stubs_and_a_bare_binary_socket_are_enough(gateway, worker):
    with connect(gateway.ws_url, subprotocols=["twinspan.v1.proto"], proxy=None) as socket:
        request = pb.Frame(id="msg-123", session_id="sess-456", type="query")
        request.payload.struct_value.update({"action": "search", "query": "HEA synthesis"})
        socket.send(request.SerializeToString())
        text, frame = "", pb.Frame()
        while not frame.final:
            frame = pb.Frame.FromString(socket.recv(timeout=20))
            text += frame.text
        assert text == SOURCE


def test_the_whole_session_sees_the_answer(gateway, worker, attach, face):
    watcher, asker = attach(face), attach("json")
    watcher.join("sess-456")
    asker.send_frame(json.loads(EXACT))
    mine = asker.answer("msg-123")
    theirs = watcher.answer("msg-123")
    check(theirs)
    assert mine == theirs


def test_several_sessions_ask_at_once(worker, attach):
    askers = [attach(face) for face in ["json", "proto", "grpc"] * 2]
    for number, asker in enumerate(askers):
        asker.send(id="q", sessionId=f"s{number}", type="query", payload={"query": str(number)})
    for number, asker in enumerate(askers):
        replies = asker.answer("q")
        assert "".join(reply.get("text", "") for reply in replies) == example.answer(str(number)) + " "
        assert {reply["sessionId"] for reply in replies} == {f"s{number}"}
