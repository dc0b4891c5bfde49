"""ProtoJSON, held against Python's protobuf library: what the gateway writes is what `json_format` writes, and what
`json_format` takes, the gateway takes in the same sense."""

import json

import pytest
from google.protobuf import wrappers_pb2  # noqa: F401, so that the library knows these types
from google.protobuf.json_format import MessageToDict, Parse, ParseError
from twinspan.v1 import frame_pb2 as pb

FRAMES = [
    {"payload": None},
    {"payload": {"a": [1, 2.5, -3, 1e300, 0.1], "b": {"": "empty"}, "c": [[], {}, None, True, "x"]}},
    {"payload": 'quote " backslash \\ tab \t nul \u0000 line \u2028 ü 😀'},
    {"payload": [0, -0.5, 123456789, 1e21, 5e-324, 1.7976931348623157e308]},
    {"data": "AAECA/8="},
    {"text": "é\u0001\u007f😀"},
    {"text": ""},
    {"type": "typed", "message": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1.500s"}},
    {"message": {"@type": "type.googleapis.com/google.protobuf.Timestamp", "value": "2026-01-02T03:04:05.000006Z"}},
    {"message": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"k": [1, None]}}},
    {"message": {"@type": "type.googleapis.com/google.protobuf.Int64Value", "value": "9007199254740993"}},
    {"message": {"@type": "type.googleapis.com/twinspan.v1.Address", "role": "r", "memberId": "m"}},
    {"error": {"code": "UNAVAILABLE", "reason": "MINE", "message": "m", "details": {"k": "v"}, "retryable": True, "retryAfter": "0.250s"}},
    {"metadata": {"traceparent": "00-1-2-03", "b": ""}},
]

# The same frame, spelled as other writers may spell it.
SPELLINGS = [
    '{"id":"x","sessionId":"s","data":"-_8"}',
    '{"id":"x","sessionId":"s","data":"+/8="}',
    '{"id":"x","session_id":"s","data":"+/8"}',
    ' { "id" : "\\u0078" , "session_id":"s", "text": null, "seq":null, "from":null, "metadata":null, "data":"-_8=" } ',
    '{"id":"x","sessionId":"s","data":"+/8=","seq":"7","attempt":1e1,"index":2.0,"timestamp":"2026-01-02T03:04:05+01:00"}',
    '{"id":"x","sessionId":"s","data":"+/8=","seq":7,"attempt":"3","timestamp":"0001-01-01T00:00:00Z","ephemeral":false}',
]

REFUSED = [
    '{"sessionId":"s","text":"a","text":"b"}',
    '{"sessionId":"s","text":"a","data":""}',
    '{"sessionId":"s","ephemeral":"true"}',
    '{"sessionId":"s","attempt":-1}',
    '{"sessionId":"s","attempt":1.5}',
    '{"sessionId":"s","attempt":4294967296}',
    '{"sessionId":"s","timestamp":"yesterday"}',
    '{"sessionId":"s","timestamp":"10000-01-01T00:00:00Z"}',
    '{"sessionId":"s","error":{"code":"NO_SUCH_CODE"}}',
    '{"sessionId":"s","options":{"timeouts":{"total":"1"}}}',
    '{"sessionId":"s","metadata":{"a":null}}',
    '{"sessionId":"s","noSuchField":1}',
]

# Python's library lets these pass: the last spelling of a field wins, and what is not base64 is skipped.
REFUSED_BY_US = ['{"sessionId":"s","session_id":"s"}', '{"sessionId":"s","data":"*"}']

GATEWAYS_OWN = ["seq", "from", "timestamp"]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: json.dumps(frame)[:40])
def test_what_is_written_is_what_the_library_writes(attach, face, frame):
    sender, text, binary = attach(face), attach("json"), attach("proto")
    for peer in [text, binary]:
        peer.join("s")
    sender.publish("s", **frame, id="x")
    by_gateway = text.expect(lambda got: got.get("id") == "x" and "seq" in got)
    by_library = binary.expect(lambda got: got.get("id") == "x" and "seq" in got)
    assert by_gateway == by_library
    sent = {key: value for key, value in by_gateway.items() if key not in [*GATEWAYS_OWN, "id", "sessionId"]}
    assert sent == frame


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_mean_what_they_mean_to_the_library(attach, spelling):
    meant = MessageToDict(Parse(spelling, pb.Frame()))
    sender = attach("json")
    sender.join("s")
    sender.send_raw(spelling)
    got = sender.expect(lambda got: got.get("id") == "x" and "seq" in got)
    for key in [*GATEWAYS_OWN, "attempt", "index"]:
        got.pop(key, None)
        meant.pop(key, None)
    assert got == meant


@pytest.mark.parametrize("bad", REFUSED)
def test_what_the_library_refuses_is_refused(attach, bad):
    with pytest.raises(ParseError):
        Parse(bad, pb.Frame())
    is_refused(attach, bad)


@pytest.mark.parametrize("bad", REFUSED_BY_US)
def test_what_is_ambiguous_is_refused(attach, bad):
    is_refused(attach, bad)


def is_refused(attach, bad):
    sender = attach("json")
    sender.send_raw(bad)
    assert sender.expect("error")["error"]["code"] == "INVALID_ARGUMENT"
    assert sender.is_alive()
