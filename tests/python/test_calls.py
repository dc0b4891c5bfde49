"""The Sessions service, as grpcio sees it."""

import contextlib

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, ParseDict
from support import channel, refusal
from support import sessions as stub
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import sessions_pb2 as calls


@contextlib.contextmanager
def refused(code, reason, **details):
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error = refusal(caught.value)
    assert (error.code, error.reason) == (code, reason), error
    assert details.items() <= error.details.items(), error


def publish(sessions, session, member="", **frame):
    frame = ParseDict({"sessionId": session} | frame, pb.Frame())
    return sessions.Publish(calls.PublishRequest(frame=frame, member_id=member))


def test_the_life_of_a_session(sessions):
    made = sessions.Create(calls.CreateRequest(session_id="s", metadata={"owner": "ann"}))
    assert (made.session_id, made.state, dict(made.metadata)) == ("s", pb.SESSION_STATE_OPEN, {"owner": "ann"})
    assert made.epoch and made.etag and made.head_seq == 0 and made.first_seq == 1
    assert sessions.Get(calls.GetRequest(session_id="s")) == made
    changed = sessions.Update(calls.UpdateRequest(session_id="s", set={"a": "1", "b": "2"}, unset=["owner"], etag=made.etag))
    assert dict(changed.metadata) == {"a": "1", "b": "2"} and changed.etag != made.etag
    with refused("ABORTED", "ETAG_MISMATCH"):
        sessions.Update(calls.UpdateRequest(session_id="s", set={"a": "3"}, etag=made.etag))
    closed = sessions.Close(calls.CloseRequest(session_id="s"))
    assert closed.state == pb.SESSION_STATE_CLOSED
    assert sessions.Close(calls.CloseRequest(session_id="s")) == closed
    with refused("FAILED_PRECONDITION", "SESSION_CLOSED"):
        publish(sessions, "s", text="too late")
    sessions.Delete(calls.DeleteRequest(session_id="s"))
    for call in [sessions.Get, sessions.Delete]:
        with refused("NOT_FOUND", "SESSION_NOT_FOUND"):
            call(calls.GetRequest(session_id="s") if call is sessions.Get else calls.DeleteRequest(session_id="s"))


def test_labels_and_retention(sessions):
    asked = {"max_frames": 7, "max_bytes": 2**63, "max_age": Duration(seconds=90)}
    made = sessions.Create(
        calls.CreateRequest(session_id="labelled", labels={"team": "red", "stage": ""}, retention=pb.Retention(**asked))
    )
    assert dict(made.labels) == {"team": "red", "stage": ""}
    kept = made.retention
    assert (kept.max_frames, kept.max_age.seconds) == (7, 90)
    assert kept.max_bytes < 2**63 and kept.idle.seconds > 0, "the settings bound it, and complete it"
    update = calls.UpdateRequest(session_id="labelled", set_labels={"team": "blue"}, unset_labels=["stage"], etag=made.etag)
    changed = sessions.Update(update)
    assert dict(changed.labels) == {"team": "blue"} and changed.retention == kept
    with refused("ABORTED", "ETAG_MISMATCH"):
        sessions.Update(update)
    back = sessions.Update(calls.UpdateRequest(session_id="labelled", retention=pb.Retention()))
    assert back.retention.max_frames > 7 and back.labels == changed.labels
    found = sessions.List(calls.ListRequest(labels={"team": "blue"}))
    assert [session.session_id for session in found.sessions] == ["labelled"]
    assert not sessions.List(calls.ListRequest(labels={"team": "red"})).sessions
    for field, wrong in {
        "labels": {"labels": {"a b": "x"}},
        "retention.max_frames": {"retention": pb.Retention(max_frames=0)},
        "retention.max_age": {"retention": pb.Retention(max_age=Duration(seconds=-1))},
        "retention.idle": {"retention": pb.Retention(idle=Duration())},
    }.items():
        with refused("INVALID_ARGUMENT", "INVALID_FIELD", field=field):
            sessions.Create(calls.CreateRequest(**wrong))


def test_refusals_say_what_was_wrong(sessions):
    assert sessions.Create(calls.CreateRequest()).session_id
    sessions.Create(calls.CreateRequest(session_id="s"))
    with refused("ALREADY_EXISTS", "SESSION_EXISTS"):
        sessions.Create(calls.CreateRequest(session_id="s"))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD", field="session_id"):
        sessions.Create(calls.CreateRequest(session_id="not a name"))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD", field="session_id"):
        sessions.Get(calls.GetRequest())
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        sessions.List(calls.ListRequest(page_token="made up"))
    with refused("INVALID_ARGUMENT", "INVALID_FIELD", field="frame"):
        sessions.Publish(calls.PublishRequest())
    with refused("FAILED_PRECONDITION", "UNEXPECTED_FRAME"):
        publish(sessions, "s", ping={})


def test_sessions_are_listed_in_pages(sessions):
    names = [f"list-{number:02}" for number in range(25)]
    for name in names:
        sessions.Create(calls.CreateRequest(session_id=name, metadata={"even": str(int(name[-1]) % 2 == 0)}))
    sessions.Create(calls.CreateRequest(session_id="other"))
    found, token, pages = [], "", 0
    while not pages or token:
        page = sessions.List(calls.ListRequest(prefix="list-", page_size=10, page_token=token))
        found += [session.session_id for session in page.sessions]
        token, pages = page.next_page_token, pages + 1
    assert found == names and pages == 3
    even = sessions.List(calls.ListRequest(metadata={"even": "True"}))
    assert [session.session_id for session in even.sessions] == names[::2]
    sessions.Close(calls.CloseRequest(session_id="other"))
    closed = sessions.List(calls.ListRequest(state=pb.SESSION_STATE_CLOSED))
    assert [session.session_id for session in closed.sessions] == ["other"]
    first = sessions.List(calls.ListRequest(page_size=1))
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        sessions.List(calls.ListRequest(page_size=1, page_token=first.next_page_token, prefix="list-"))


def test_frames_are_listed_in_pages_and_filtered(sessions):
    for number in range(1, 26):
        published = publish(sessions, "s", id=f"f{number}", type="odd" if number % 2 else "even", payload={"n": number})
        assert (published.id, published.seq, published.duplicate) == (f"f{number}", number, False)
    assert publish(sessions, "s", id="f3", type="odd", payload={"n": 3}).duplicate
    with refused("ALREADY_EXISTS", "ID_REUSED", seq="3"):
        publish(sessions, "s", id="f3", text="something else")
    assert publish(sessions, "s", ephemeral=True, text="gone").seq == 0

    def listed(**query):
        found, token = [], ""
        while True:
            page = sessions.ListFrames(calls.ListFramesRequest(session_id="s", page_token=token, **query))
            assert page.head_seq == 25 and page.first_seq == 1
            found += page.frames
            token = page.next_page_token
            if not token:
                return found

    def numbers(**query):
        return [frame.seq for frame in listed(**query)]

    assert numbers(page_size=10) == list(range(1, 26))
    assert numbers(page_size=10, newest_first=True) == list(range(25, 0, -1))
    assert numbers(after_seq=5, before_seq=10) == [6, 7, 8, 9]
    assert numbers(types=["even"], page_size=3) == list(range(2, 26, 2))
    tenth = listed()[9].timestamp
    assert 10 in numbers(after_time=tenth) and 10 not in numbers(before_time=tenth)
    assert set(numbers(after_time=tenth)) | set(numbers(before_time=tenth)) == set(range(1, 26))
    frame = MessageToDict(listed()[0])
    assert frame["payload"] == {"n": 1} and getattr(listed()[0], "from").member_id == "api"


def test_a_watcher_follows_the_log(gateway, sessions, attach, face):
    member = attach(face)
    epoch = member.join("s", memberId="m")["epoch"]
    for number in range(3):
        publish(sessions, "s", text=str(number))
    with channel(gateway) as other:
        watching = stub(other).Watch(calls.WatchRequest(session_id="s", after_seq=1, epoch=epoch), timeout=20)
        joined = next(watching).joined
        assert joined.resumed and joined.head_seq == 3 and joined.member_id == ""
        assert [next(watching).text for _ in range(2)] == ["1", "2"]
        member.publish("s", text="private", to={"memberId": "m"})
        member.publish("s", text="live")
        live = next(watching)
        assert (live.text, live.seq, getattr(live, "from").member_id) == ("live", 5, "m")
        watching.cancel()
    got = [member.expect("seq")["text"] for _ in range(5)]
    assert got == ["0", "1", "2", "private", "live"]


def test_a_request_by_call_is_answered_in_the_log(sessions, attach):
    worker = attach("grpc")
    worker.serve("brain")
    published = publish(sessions, "s", type="query", payload={"q": 1})
    request = worker.request()
    assert request["id"] == published.id and request["from"] == {"role": "client", "memberId": "api"}
    worker.reply(request, text="answer", final=True)
    watching = sessions.Watch(calls.WatchRequest(session_id="s", after_seq=0), timeout=20)
    assert [frame.WhichOneof("body") for _, frame in zip(range(3), watching)] == ["joined", "payload", "text"]
    watching.cancel()


def test_a_call_cancels_a_request(sessions, attach):
    worker = attach("grpc")
    worker.serve("brain")
    publish(sessions, "s", id="q", type="query")
    worker.request()
    cancel = calls.CancelRequest(session_id="s", request_id="q", reason="changed my mind", grace=Duration())
    assert sessions.Cancel(cancel).outcome == pb.CANCEL_OUTCOME_ACCEPTED
    assert worker.expect("cancel")["cancel"] == {"requestId": "q", "reason": "REQUEST_CANCELLED", "attempt": 1}
    assert sessions.Cancel(cancel).outcome == pb.CANCEL_OUTCOME_ALREADY_ENDED


def test_members_are_told_of_what_calls_do(sessions, attach, face):
    member, worker = attach(face), attach("grpc")
    worker.serve("brain")
    member.join("s")
    sessions.Update(calls.UpdateRequest(session_id="s", set={"topic": "alloys"}))
    assert member.expect("sessionChanged")["sessionChanged"]["session"]["metadata"] == {"topic": "alloys"}
    member.publish("s", id="q", to={"role": "brain"})
    worker.request()
    sessions.Close(calls.CloseRequest(session_id="s", reason="done for today"))
    # The end of the request is logged, the change is not; their order is not kept.
    frames = [member.expect(lambda frame: "sessionChanged" in frame or frame.get("final")) for _ in range(2)]
    last = next(frame for frame in frames if "final" in frame)
    changed = next(frame for frame in frames if "sessionChanged" in frame)
    assert last["error"]["reason"] == "REQUEST_CANCELLED" and last["error"]["code"] == "CANCELLED"
    assert "done for today" in last["error"]["message"]
    assert changed["sessionChanged"]["session"]["state"] == "SESSION_STATE_CLOSED"
    assert worker.expect("cancel")["cancel"]["reason"] == "REQUEST_CANCELLED"
    assert member.refused(sessionId="s", text="?")["reason"] == "SESSION_CLOSED"
    sessions.Delete(calls.DeleteRequest(session_id="s"))
    assert member.expect("left")["left"]["error"]["reason"] == "SESSION_DELETED"
    assert member.is_alive()
