"""Requests: every one ends exactly once, whatever becomes of its worker."""

import pytest


@pytest.fixture
def asker(attach, face):
    asker = attach(face)
    asker.join("s", memberId="asker")
    return asker


def ask(asker, id="q", **frame):
    asker.publish("s", id=id, to={"role": "brain"}, payload={"n": 1}, **frame)


def ended(asker, id="q"):
    last = asker.answer(id)[-1]
    assert last["from"]["role"] == "gateway" and last["final"] is True
    return last["error"]


def test_a_second_frame_with_the_same_id_gets_the_first_ones_ack(asker, attach, face):
    first = asker.publish("s", id="once", text="hello")
    again = asker.publish("s", id="once", text="hello")
    assert again == first | {"duplicate": True}
    asker.vanish()
    back = attach(face)
    back.join("s", memberId="asker", afterSeq="0")
    assert back.publish("s", id="once", text="hello") == again
    back.publish("s", id="mark", text="mark")
    back.expect(lambda frame: frame.get("text") == "mark")
    assert [frame["text"] for frame in back.seen if "text" in frame] == ["hello", "mark"]


def test_a_request_goes_to_one_worker_and_its_answer_to_the_session(asker, attach):
    workers = [attach("grpc"), attach("json")]
    for worker in workers:
        worker.serve("brain", workerId=worker.face)
    ask(asker)
    request = None
    while request is None:
        for worker in workers:
            worker.send(ping={"data": "turn"})
            frame = worker.expect(lambda frame: "pong" in frame or frame.get("attempt"))
            if frame.get("attempt"):
                assert request is None
                request, holder = frame, worker
    assert request["payload"] == {"n": 1} and request["id"] == "q" and request["attempt"] == 1
    assert float(request["options"]["timeouts"]["total"].rstrip("s")) <= 600
    other = next(worker for worker in workers if worker is not holder)
    assert other.refused(sessionId="s", replyTo="q", text="me too")["reason"] == "NOT_YOUR_REQUEST"
    for word in ["one", "two"]:
        holder.reply(request, text=word)
    holder.reply(request, payload={"done": True}, final=True)
    replies = asker.answer("q")
    assert [reply.get("text") for reply in replies] == ["one", "two", None]
    assert replies[-1]["payload"] == {"done": True}
    assert {reply["from"]["memberId"] for reply in replies} == {holder.face}
    assert holder.refused(sessionId="s", replyTo="q", text="late")["reason"] == "REQUEST_ENDED"


def test_a_workers_error_is_the_answer(asker, attach):
    worker = attach("grpc")
    worker.serve("brain")
    ask(asker)
    worker.reply(worker.request(), error={"code": "NOT_FOUND", "reason": "NO_SUCH_ALLOY", "message": "none"})
    last = asker.answer("q")[-1]
    assert last["final"] is True and last["error"] == {"code": "NOT_FOUND", "reason": "NO_SUCH_ALLOY", "message": "none"}


def test_a_cancel_reaches_the_worker_and_ends_the_request(asker, attach):
    worker, other = attach("grpc"), attach("json")
    worker.serve("brain")
    ask(asker)
    request = worker.request()
    worker.reply(request, text="one")
    # Any member may; the one who asked need not.
    assert other.ask("cancelAck", sessionId="s", cancel={"requestId": "q", "reason": "enough", "grace": "0s"}) == {
        "requestId": "q",
        "outcome": "CANCEL_OUTCOME_ACCEPTED",
    }
    cancel = worker.expect("cancel")
    assert cancel["sessionId"] == "s" and cancel["cancel"] == {"requestId": "q", "reason": "REQUEST_CANCELLED", "attempt": 1}
    error = ended(asker)
    assert (error["code"], error["reason"]) == ("CANCELLED", "REQUEST_CANCELLED") and "enough" in error["message"]
    worker.send(id="late", sessionId="s", replyTo="q", text="late")
    late = worker.expect(lambda frame: frame.get("replyTo") == "late")
    assert late["error"]["reason"] == "REQUEST_ENDED"
    assert other.ask("cancelAck", sessionId="s", cancel={"requestId": "q"})["outcome"] == "CANCEL_OUTCOME_ALREADY_ENDED"
    assert other.ask("cancelAck", sessionId="s", cancel={"requestId": "?"})["outcome"] == "CANCEL_OUTCOME_NOT_FOUND"
    assert asker.is_alive() and not [frame for frame in asker.seen if frame.get("text") == "late"]


def test_a_request_can_be_cancelled_before_a_worker_has_it(asker, attach):
    ask(asker)
    assert asker.ask("cancelAck", sessionId="s", cancel={"requestId": "q"})["outcome"] == "CANCEL_OUTCOME_ACCEPTED"
    worker = attach("grpc")
    worker.serve("brain")
    ask(asker, id="next")
    assert worker.request()["id"] == "next"


def test_a_lost_worker_ends_its_requests(asker, attach):
    worker = attach("grpc")
    worker.serve("brain", maxInFlight=2)
    for id in ["q1", "q2"]:
        ask(asker, id=id)
        worker.request()
    worker.vanish()
    for id in ["q1", "q2"]:
        error = ended(asker, id)
        assert (error["code"], error["reason"], error["retryable"]) == ("UNAVAILABLE", "WORKER_LOST", True)


def test_a_request_waits_for_a_worker(asker, attach):
    ask(asker)
    worker = attach("grpc")
    worker.serve("brain")
    worker.reply(worker.request(), text="here", final=True)
    assert asker.answer("q")[-1]["text"] == "here"


def test_a_request_waits_no_longer_than_its_accept_timeout(asker):
    ask(asker, options={"timeouts": {"accept": "0.200s"}})
    error = ended(asker)
    assert (error["code"], error["reason"], error["retryable"]) == ("UNAVAILABLE", "NO_WORKER", True)


def test_full_workers_are_not_the_same_as_none(asker, attach):
    worker = attach("grpc")
    worker.serve("brain")
    ask(asker)
    worker.request()
    ask(asker, id="second", options={"timeouts": {"accept": "0.200s"}})
    error = ended(asker, "second")
    assert (error["code"], error["reason"]) == ("DEADLINE_EXCEEDED", "ACCEPT_TIMEOUT")


def test_the_total_timeout_reaches_the_worker(asker, attach):
    worker = attach("grpc")
    worker.serve("brain")
    ask(asker, options={"timeouts": {"total": "0.300s"}})
    worker.request()
    error = ended(asker)
    assert (error["code"], error["reason"]) == ("DEADLINE_EXCEEDED", "TOTAL_TIMEOUT")
    assert worker.expect("cancel")["cancel"] == {"requestId": "q", "reason": "TOTAL_TIMEOUT", "attempt": 1}


def test_a_worker_serves_the_sessions_that_it_said(asker, attach):
    worker = attach("grpc")
    worker.serve("brain", sessions=["other-*"])
    ask(asker, options={"timeouts": {"accept": "0.200s"}})
    assert ended(asker)["reason"] in ("NO_WORKER", "ACCEPT_TIMEOUT")
    asker.publish("other-1", id="q", to={"role": "brain"})
    assert worker.request()["sessionId"] == "other-1"
