"""Members of one session on different faces: whatever one says reaches the other unchanged."""

import base64

import pytest
from support import FACES

DEEP = "bottom"
for _ in range(31):
    DEEP = [DEEP]

PAYLOADS = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "negative zero": -0.0,
    "fraction": -1.5,
    "large": 1e300,
    "small": 5e-324,
    "2^53": 2**53,
    "empty text": "",
    "quotes and lines": 'a "b" \\ \n\r\t\b\f / end',
    "control characters": "\x00\x01\x1f\x7f\u2028\u2029",
    "languages": "Grüße, 高熵合金, 🧪🏳️‍🌈, \U0010ffff",
    "empty list": [],
    "empty object": {},
    "list": [1, "two", None, True, [3.25, []], {}],
    "keys": {"": 0, "a.b": 1, "@type": "x", 'quo"te': 2, "payload": 3, "__proto__": 4, "é": 5, "\n": 6},
    "nested": {"a": {"b": [{"c": {"d": [{}, [None]]}}]}},
    "deepest": DEEP,
    "wide": {f"key-{number}": [number] * 3 for number in range(500)},
    "long text": "0123456789abcdef" * 4096,
}


@pytest.mark.parametrize("to", FACES)
@pytest.mark.parametrize("sender", FACES)
def test_payloads_arrive_as_they_were_sent(attach, sender, to):
    one, other = attach(sender), attach(to)
    one.join("s")
    other.join("s", memberId="other")
    for name, payload in PAYLOADS.items():
        one.send(sessionId="s", type="shape", metadata={"name": name}, payload=payload)
    for name, payload in PAYLOADS.items():
        frame = other.expect("payload")
        assert frame["metadata"] == {"name": name}
        assert frame["payload"] == payload
    # And back.
    other.send(sessionId="s", payload=PAYLOADS)
    assert one.expect(lambda frame: frame.get("from", {}).get("memberId") == "other")["payload"] == PAYLOADS


@pytest.mark.parametrize("to", FACES)
@pytest.mark.parametrize("sender", FACES)
def test_other_bodies_arrive_as_they_were_sent(attach, sender, to):
    one, other = attach(sender), attach(to)
    one.join("s")
    other.join("s")
    data = base64.b64encode(bytes(range(256)) * 5).decode()
    error = {"code": "ABORTED", "reason": "MY_REASON", "message": "mine", "details": {"k": "v"}, "retryable": True, "retryAfter": "1.500s"}
    duration = {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "3.500s"}
    bodies = [("data", data), ("data", ""), ("text", "Grüße 🧪"), ("text", ""), ("error", error), ("message", duration)]
    for kind, body in bodies:
        one.send(sessionId="s", **{kind: body})
    one.send(sessionId="s", type="nothing")
    for kind, body in bodies:
        assert other.expect(kind)[kind] == body
    last = other.expect("type")
    assert not last.keys() & {"payload", "data", "text", "error", "message"}


def test_what_the_gateway_sets_cannot_be_forged(attach, face):
    one, other = attach(face), attach("json")
    one.join("s", memberId="one")
    other.join("s")
    forged = {"role": "gateway", "memberId": "other", "subject": "root"}
    one.send(sessionId="s", text="mine", seq="99", timestamp="2001-01-01T00:00:00Z", **{"from": forged})
    frame = other.expect("text")
    assert frame["from"] == {"role": "client", "memberId": "one"}
    assert frame["seq"] == "1" and not frame["timestamp"].startswith("2001")


def test_private_multicast_and_ephemeral_frames_reach_only_those_they_are_for(attach, face):
    one, two, three = attach(face), attach("json"), attach("grpc")
    one.join("s", memberId="one")
    two.join("s", memberId="two", role="screen")
    three.join("s", memberId="three")
    one.send(sessionId="s", text="to two", to={"memberId": "two"})
    one.send(sessionId="s", text="to screens", to={"role": "screen", "multicast": True})
    one.send(sessionId="s", text="typing", ephemeral=True)
    one.send(sessionId="s", text="to all")
    # Ephemeral frames keep no order beside logged ones.
    assert sorted(two.expect("text")["text"] for _ in range(4)) == ["to all", "to screens", "to two", "typing"]
    assert sorted(three.expect("text")["text"] for _ in range(2)) == ["to all", "typing"]
    assert three.is_alive()
    assert not [frame for frame in three.seen if frame.get("text", "").startswith(("to two", "to screens"))]
    assert one.refused(sessionId="s", text="?", to={"memberId": "nobody"})["reason"] == "MEMBER_NOT_FOUND"


def test_presence_tells_who_comes_and_goes(attach, face):
    one, other = attach(face), attach("json")
    one.join("s", memberId="one", presence=True)
    other.join("s", memberId="two")
    came = one.expect(lambda frame: any(m["memberId"] == "two" for m in frame.get("presence", {}).get("joined", [])))
    assert came["presence"]["memberCount"] == 2
    other.close()
    left = one.expect(lambda frame: "left" in frame.get("presence", {}))["presence"]
    assert [member["memberId"] for member in left["left"]] == ["two"] and left["memberCount"] == 1


def test_the_newer_connection_of_a_member_wins(attach, face):
    old, new = attach(face), attach("json")
    old.join("s", memberId="m")
    new.join("s", memberId="m")
    assert old.expect("left")["left"]["error"]["reason"] == "MEMBER_REPLACED"
    assert old.is_alive()
    assert new.ask("left", sessionId="s", leave={}) == {}


def test_hello_is_answered_with_what_is_in_force(attach, face):
    peer = attach(face)
    welcome = peer.ask("welcome", hello={"client": "tests/1"})
    assert welcome["connectionId"] and welcome["server"].startswith("twinspan/")
    assert welcome["heartbeatInterval"].endswith("s")
    assert welcome["limits"]["frameBytes"] == 1 << 20 and welcome["limits"]["payloadDepth"] == 32
