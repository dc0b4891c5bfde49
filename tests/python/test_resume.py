"""A cursor put back where it was: no gap, no duplicate."""

import pytest
from support import Socket


def numbers(frames):
    return [int(frame["seq"]) for frame in frames]


def publish(peer, count):
    for _ in range(count):
        peer.publish("s", text="x")


@pytest.mark.parametrize("again", ["json", "proto", "grpc"])
def test_a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice(attach, face, again):
    writer, reader = attach("grpc"), attach(face)
    epoch = reader.join("s", memberId="reader")["epoch"]
    publish(writer, 20)
    got = [reader.expect("seq") for _ in range(7)]
    reader.vanish()
    publish(writer, 20)
    second = attach(again)
    joined = second.join("s", memberId="reader", afterSeq=got[-1]["seq"], epoch=epoch)
    assert joined["resumed"] is True and joined["headSeq"] == "40" and joined["epoch"] == epoch
    publish(writer, 10)
    got += [second.expect("seq") for _ in range(43)]
    assert numbers(got) == list(range(1, 51))
    assert second.is_alive() and not [frame for frame in second.seen if "gap" in frame]


def test_a_long_history_comes_whole(attach, face):
    """More than is kept at hand for live members."""
    writer, reader = attach("json"), attach(face)
    for _ in range(3000):
        writer.send(sessionId="s", text="x")
    writer.publish("s", text="last")
    assert reader.join("s", afterSeq="0")["resumed"] is True
    assert numbers(reader.expect("seq") for _ in range(3001)) == list(range(1, 3002))


def test_the_url_resumes_as_well(gateway, attach):
    writer = attach("grpc")
    epoch = writer.join("s")["epoch"]
    publish(writer, 5)
    reader = Socket(gateway, query=f"?session_id=s&after_seq=2&epoch={epoch}&member_id=m", subprotocol=False)
    assert reader.next()["joined"]["resumed"] is True
    assert numbers(reader.expect("seq") for _ in range(3)) == [3, 4, 5]
    reader.close()


def test_the_tail_is_the_newest_frames(attach, face):
    peer = attach(face)
    publish(peer, 10)
    peer.join("s", tail=3)
    assert numbers(peer.expect("seq") for _ in range(3)) == [8, 9, 10]


def test_another_epoch_is_a_typed_gap(attach, face):
    peer = attach(face)
    publish(peer, 3)
    joined = peer.join("s", afterSeq="2", epoch="another")
    assert "resumed" not in joined
    gap = peer.expect("gap")["gap"]
    assert gap["reason"] == "GAP_REASON_EPOCH_CHANGED" and gap["epoch"] == joined["epoch"]
    assert numbers(peer.expect("seq") for _ in range(3)) == [1, 2, 3]


def test_the_future_cannot_be_resumed(attach, face):
    peer = attach(face)
    publish(peer, 3)
    error = peer.refused(sessionId="s", join={"afterSeq": "4"})
    assert (error["code"], error["reason"]) == ("OUT_OF_RANGE", "AFTER_SEQ_AHEAD")
    error = peer.refused(sessionId="s", join={"afterSeq": "1", "tail": 1})
    assert error["reason"] == "INVALID_FIELD"


def test_a_request_goes_on_while_its_asker_is_away(attach, face):
    worker, asker = attach("grpc"), attach(face)
    worker.serve("brain")
    epoch = asker.join("s", memberId="asker")["epoch"]
    asker.publish("s", id="q", type="query", payload={})
    request = worker.request()
    worker.reply(request, text="one")
    seen = asker.expect(lambda frame: frame.get("text") == "one")
    asker.vanish()
    worker.reply(request, id="two", text="two")
    worker.accepted("two")
    again = attach(face)
    joined = again.join("s", memberId="asker", afterSeq=seen["seq"], epoch=epoch)
    assert [(open["requestId"], open["chunks"]) for open in joined["openRequests"]] == [("q", 2)]
    worker.reply(request, text="three", final=True)
    assert [reply["text"] for reply in again.answer("q")] == ["two", "three"]
