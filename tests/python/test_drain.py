"""SIGTERM: say so, finish what is under way, and go with exit code 0."""

import pytest
from raw import WebSocket
from support import Worker, peer


def check_end(peer):
    ended = peer.ended()
    assert (ended.code, ended.reason) == ("UNAVAILABLE" if peer.face == "grpc" else 1012, "SHUTDOWN")


def test_what_is_under_way_is_finished(gateway, attach, face):
    asker, worker = attach(face), attach("grpc")
    asker.join("s")
    worker.serve("brain")
    asker.publish("s", id="q", type="query")
    request = worker.request()
    worker.reply(request, text="one")
    asker.expect(lambda frame: frame.get("text") == "one")

    gateway.terminate()
    for peer in [asker, worker]:
        away = peer.expect("goAway")["goAway"]
        assert away["error"]["reason"] == "DRAINING" and away["error"]["retryable"] is True and away["grace"].endswith("s")
    error = asker.refused(sessionId="s", to={"role": "brain"})
    assert (error["code"], error["reason"]) == ("UNAVAILABLE", "DRAINING")
    # The request goes on, and so does the session.
    assert asker.publish("s", text="still here")["seq"]
    worker.reply(request, text="two")
    worker.reply(request, text="three", final=True)
    assert [reply["text"] for reply in asker.answer("q")] == ["two", "three"]
    check_end(asker)
    check_end(worker)
    assert gateway.exit_code() == 0


def test_no_new_connections_are_taken(gateway, attach):
    worker = attach("grpc")
    worker.serve("brain")
    asker = attach("json")
    asker.publish("s", id="q", type="query")
    request = worker.request()
    gateway.terminate()
    asker.expect("goAway")
    with pytest.raises(ConnectionRefusedError):
        gateway.http("GET", "/readyz")
    worker.reply(request, final=True)
    check_end(asker)
    # Asked a second time before it is gone, it would go at once.
    assert gateway.exit_code() == 0


def test_what_does_not_finish_in_time_is_ended(start):
    # On disk it would go on in the next process.
    gateway = start(drain_grace="500ms", durability="memory")
    asker, worker = peer(gateway, "json"), peer(gateway, "grpc")
    asker.join("s")
    worker.serve("brain")
    asker.publish("s", id="q", to={"role": "brain"})
    worker.request()
    gateway.terminate()
    last = asker.answer("q")[-1]
    assert last["final"] is True and last["from"]["role"] == "gateway"
    assert (last["error"]["code"], last["error"]["reason"]) == ("UNAVAILABLE", "SHUTDOWN")
    check_end(asker)
    assert worker.expect("cancel")["cancel"]["reason"] == "SHUTDOWN"
    check_end(worker)
    assert gateway.exit_code() == 0


def test_a_peer_that_does_not_read_delays_nothing_for_long(gateway):
    """It is sent more than its socket takes, and never answers the close."""
    socket = WebSocket(gateway)
    socket.send(1, b'{"sessionId":"s","join":{}}')
    for _ in range(200):
        socket.send(1, b'{"sessionId":"s","text":"%s"}' % (b"x" * 50_000))
    gateway.terminate()
    assert gateway.exit_code() == 0


def test_an_idle_gateway_stops_at_once(gateway):
    gateway.terminate()
    assert gateway.exit_code() == 0


def test_the_example_worker_finishes_its_answer(gateway, attach):
    worker = Worker(gateway)
    asker = attach("json")
    asker.send(id="q", sessionId="s", type="query", payload={"query": "x"})
    asker.expect("text")
    gateway.terminate()
    assert asker.answer("q")[-1]["type"] == "stream_end"
    check_end(asker)
    worker.stop()
