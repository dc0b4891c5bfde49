"""How requests end when somebody wants them to, or goes away: cancels with a grace, workers that come back, deadlines, Why."""

import os
import time

import grpc
import pytest
import worker as example
from google.protobuf.duration_pb2 import Duration
from support import Relay, Worker, peer
from twinspan.v1 import admin_pb2 as operators
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import sessions_pb2 as calls


@pytest.fixture
def asker(attach, face):
    asker = attach(face)
    asker.join("s", memberId="asker")
    return asker


@pytest.fixture
def relay(gateway):
    relay = Relay(gateway)
    yield relay
    relay.close()


def ask(asker, id="q", **frame):
    asker.publish("s", id=id, to={"role": "brain"}, payload={"n": 1}, **frame)


def seconds(duration):
    return float(duration.rstrip("s"))


def words(replies):
    return [reply["text"] for reply in replies if "text" in reply]


def why(sessions, request="q"):
    return sessions.Why(calls.WhyRequest(session_id="s", request_id=request))


def test_a_worker_ends_a_cancelled_request_itself(asker, attach):
    worker = attach("grpc")
    worker.serve("brain")
    ask(asker)
    request = worker.request()
    worker.reply(request, text="one")
    assert asker.ask("cancelAck", sessionId="s", cancel={"requestId": "q"})["outcome"] == "CANCEL_OUTCOME_ACCEPTED"
    cancel = worker.expect("cancel")["cancel"]
    assert cancel == {"requestId": "q", "reason": "REQUEST_CANCELLED", "grace": "2s", "attempt": 1}
    # As long as it is not over, what the worker says is taken.
    worker.reply(request, text="two")
    worker.reply(request, error={"code": "CANCELLED", "reason": "STOPPED", "message": "as you wish"})
    replies = asker.answer("q")
    assert words(replies) == ["one", "two"]
    last = replies[-1]
    assert last["from"]["role"] == "brain" and last["error"]["reason"] == "STOPPED" and last["final"] is True
    assert asker.ask("cancelAck", sessionId="s", cancel={"requestId": "q"})["outcome"] == "CANCEL_OUTCOME_ALREADY_ENDED"


def test_a_worker_that_ignores_a_cancel_is_overruled_after_the_grace(asker, attach):
    worker = attach("json")
    worker.serve("brain")
    ask(asker)
    request = worker.request()
    began = time.monotonic()
    asker.ask("cancelAck", sessionId="s", cancel={"requestId": "q", "grace": "0.300s", "reason": "enough"})
    assert worker.expect("cancel")["cancel"]["grace"] == "0.300s"
    last = asker.answer("q")[-1]
    assert time.monotonic() - began >= 0.3
    assert last["from"]["role"] == "gateway" and last["error"]["reason"] == "REQUEST_CANCELLED"
    assert "enough" in last["error"]["message"]
    # The second word to the worker: it is over.
    assert worker.expect("cancel")["cancel"] == {"requestId": "q", "reason": "REQUEST_CANCELLED", "attempt": 1}
    worker.send(id="late", sessionId="s", replyTo="q", attempt=request["attempt"], text="late")
    assert worker.expect(lambda frame: frame.get("replyTo") == "late")["error"]["reason"] == "REQUEST_ENDED"


@pytest.mark.parametrize("again", ["grpc", "json"])
def test_a_worker_comes_back_by_its_name_and_keeps_what_it_holds(asker, attach, relay, again):
    first = peer(relay, again)
    first.serve("brain", workerId="w", maxInFlight=2)
    ask(asker)
    request = first.request()
    for index, word in enumerate(["one", "two"]):
        first.reply(request, text=word, index=index, attempt=1)
    ask(asker, id="dropped")
    first.request()
    two = asker.expect(lambda frame: frame.get("text") == "two")
    relay.cut()
    first.close()
    second = attach("json" if again == "grpc" else "grpc")
    hold = {"sessionId": "s", "requestId": "q", "attempt": 1}
    stranger = {"sessionId": "s", "requestId": "?", "attempt": 1}
    serving = second.serve("brain", workerId="w", maxInFlight=2, holds=[hold, stranger])
    # It learns how far the gateway is, and what remains of the time.
    [held] = serving["held"]
    assert 590 < seconds(held.pop("remaining")["total"]) <= 600 and held == hold | {"chunks": 2}
    # What it names and does not hold it is told to stop; what it held and does not name is lost to it.
    assert second.expect("cancel")["cancel"] == {"requestId": "?", "reason": "SUPERSEDED", "attempt": 1}
    assert asker.answer("dropped")[-1]["error"]["reason"] == "WORKER_LOST"
    # A chunk that was on its way when the connection went is there already, and is not said twice.
    second.reply(request, text="two", index=1, attempt=1)
    second.reply(request, text="three", index=2, attempt=1)
    second.reply(request, text="end", index=3, attempt=1, final=True)
    one, *rest = asker.answer("q")
    assert words([one, two, *rest]) == ["one", "two", "three", "end"]


def test_a_worker_that_stays_away_is_lost_after_its_grace(asker, attach):
    worker = attach("json")
    worker.serve("brain", workerId="w", grace="0.200s")
    ask(asker)
    worker.request()
    worker.vanish()
    assert asker.answer("q")[-1]["error"]["reason"] == "WORKER_LOST"


def test_a_stream_that_is_reset_is_no_goodbye(asker, attach):
    worker = attach("grpc")
    worker.serve("brain", workerId="w")
    ask(asker)
    request = worker.request()
    worker.reply(request, text="one", attempt=1)
    asker.expect(lambda frame: frame.get("text") == "one")
    worker.vanish()
    again = attach("grpc")
    hold = {"sessionId": "s", "requestId": "q", "attempt": 1}
    [held] = again.serve("brain", workerId="w", holds=[hold])["held"]
    assert held["requestId"] == "q" and held["chunks"] == 1
    again.reply(request, text="two", attempt=1, final=True)
    last = asker.answer("q")[-1]
    assert (last["text"], last["index"], last["from"]["role"]) == ("two", 1, "brain")


@pytest.mark.parametrize("leaving", ["grpc", "json"])
def test_a_worker_that_takes_its_leave_is_lost_at_once(asker, attach, leaving):
    worker = attach(leaving)
    worker.serve("brain", workerId="w", grace="300s")
    ask(asker)
    worker.request()
    worker.half_close() if leaving == "grpc" else worker.close()
    assert asker.answer("q")[-1]["error"]["reason"] == "WORKER_LOST"


def test_another_worker_begins_anew_and_members_are_told(asker, attach):
    worker, other = attach("json"), attach("grpc")
    worker.serve("brain")
    ask(asker, options={"onWorkerLoss": "WORKER_LOSS_RESTART"})
    worker.reply(worker.request(), text="half an ans")
    asker.expect(lambda frame: frame.get("text") == "half an ans")
    other.serve("brain")
    worker.vanish()
    restarted = asker.expect("restarted")
    assert restarted["replyTo"] == "q" and restarted["attempt"] == 2 and "seq" in restarted
    assert restarted["restarted"]["error"]["reason"] == "WORKER_LOST"
    request = other.request()
    assert request["attempt"] == 2
    other.reply(request, text="an answer", final=True)
    last = asker.answer("q")[-1]
    assert (last["text"], last["attempt"], last.get("index")) == ("an answer", 2, 0)


def test_a_worker_is_handed_what_remains(asker, attach):
    timeouts = {"total": "60s", "firstChunk": "20s", "idle": "5s"}
    ask(asker, options={"timeouts": timeouts})
    time.sleep(0.2)
    worker = attach("grpc")
    worker.serve("brain")
    handed = worker.request()["options"]["timeouts"]
    assert 50 < seconds(handed["total"]) <= 59.8
    assert 15 < seconds(handed["firstChunk"]) <= 20 and seconds(handed["idle"]) == 5
    assert "accept" not in handed


def test_the_deadline_of_a_call_bounds_the_request(sessions, attach, face):
    worker, reader = attach(face), attach("json")
    worker.serve("brain")
    reader.join("s")
    frame = pb.Frame(id="q", session_id="s", to=pb.Address(role="brain"), text="?")
    sessions.Publish(calls.PublishRequest(frame=frame), timeout=1.5)
    # grpcio rounds up what it sends.
    assert 0 < seconds(worker.request()["options"]["timeouts"]["total"]) < 2
    last = reader.answer("q")[-1]
    assert (last["error"]["code"], last["error"]["reason"]) == ("DEADLINE_EXCEEDED", "TOTAL_TIMEOUT")
    assert worker.expect("cancel")["cancel"]["reason"] == "TOTAL_TIMEOUT"


def test_why_follows_a_request(sessions, asker, attach, face):
    ask(asker)
    waiting = why(sessions)
    assert waiting.state == pb.REQUEST_STATE_WAITING and waiting.waits_for == calls.WAITS_FOR_A_WORKER
    assert (waiting.place, waiting.waiting, waiting.workers.total) == (1, 1, 0) and waiting.summary
    assert 0 < waiting.remaining.accept.ToTimedelta().total_seconds() <= 30
    worker = attach(face)
    worker.serve("brain", workerId="w")
    request = worker.request()
    assigned = why(sessions)
    assert assigned.state == pb.REQUEST_STATE_ASSIGNED and assigned.waits_for == calls.WAITS_FOR_UNSPECIFIED
    assert (assigned.request.worker_id, assigned.request.attempt, assigned.workers.full) == ("w", 1, 1)
    ask(asker, id="next")
    behind = why(sessions, "next")
    assert behind.waits_for == calls.WAITS_FOR_ROOM and behind.place == 1
    worker.reply(request, text="one")
    asker.expect(lambda frame: frame.get("text") == "one")
    started = why(sessions)
    assert started.state == pb.REQUEST_STATE_STARTED and started.request.chunks == 1
    cancel = calls.CancelRequest(session_id="s", request_id="q", grace=Duration(seconds=30))
    assert sessions.Cancel(cancel).outcome == pb.CANCEL_OUTCOME_ACCEPTED
    assert why(sessions).state == pb.REQUEST_STATE_CANCELLING
    worker.reply(request, text="whole after all", final=True)
    last = asker.answer("q")[-1]
    ended = why(sessions)
    assert ended.state == pb.REQUEST_STATE_COMPLETED and ended.final_seq == int(last["seq"])
    with pytest.raises(grpc.RpcError) as caught:
        why(sessions, "unheard-of")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_example_worker_ends_what_is_cancelled(attach, face, worker):
    asker = attach(face)
    asker.publish("s", id="q", type="query", payload={"query": "x"})
    asker.expect("text")
    asker.ask("cancelAck", sessionId="s", cancel={"requestId": "q", "grace": "20s"})
    last = asker.answer("q")[-1]
    assert last["from"]["role"] == "brain" and last["error"]["code"] == "CANCELLED"


def test_the_example_worker_finishes_before_it_leaves(gateway, attach, face):
    worker, asker = Worker(gateway), attach(face)
    asker.publish("s", id="q", type="query", payload={"query": "x"})
    asker.expect("text")
    worker.process.terminate()
    assert "error" not in asker.answer("q")[-1]
    assert worker.process.wait(20) == os.EX_OK
    worker.stop()


def test_an_operator_drains_the_example_worker(gateway, admin):
    worker = Worker(gateway)
    [listed] = admin.ListWorkers(operators.ListWorkersRequest(role="brain")).workers
    assert listed.state == operators.WORKER_STATE_READY and listed.max_in_flight == 8
    drained = admin.DrainWorker(operators.DrainWorkerRequest(role="brain", worker_id=listed.worker_id))
    assert drained.state == operators.WORKER_STATE_DRAINING
    assert worker.process.wait(20) == os.EX_OK
    worker.stop()


def test_the_example_worker_goes_on_over_a_lost_connection(relay, attach, face):
    """Cut in the middle of an answer: nothing is lost, and nothing is said twice."""
    worker, asker = Worker(relay), attach(face)
    asker.publish("s", id="q", type="query", payload={"query": "x"})
    early = asker.expect("text")
    relay.cut()
    replies = asker.answer("q")
    assert "error" not in replies[-1] and not [reply for reply in replies if "restarted" in reply]
    assert "".join(words([early, *replies])) == example.answer("x") + " "
    worker.stop()
