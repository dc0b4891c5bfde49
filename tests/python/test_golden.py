"""The golden frames, held against Python's own protobuf library.

`frames.jsonl` has frames in both forms, with other spellings of their JSON that are read alike; `refused.jsonl` has what is
no frame. A refusal marked `strict` is one where the gateway asks for more than protobuf libraries do.

The Rust suite holds the gateway's own code to the same files.
"""

import json
import pathlib

import pytest
from google.protobuf import json_format, message
from twinspan.v1.frame_pb2 import Frame

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def lines(name):
    return [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()]


def wire(frame):
    return frame.SerializeToString(deterministic=True)


def plain(value):
    """JSON with all its numbers as doubles, as JavaScript reads them."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value


@pytest.mark.parametrize("golden", lines("frames.jsonl"), ids=lambda golden: golden["name"])
def test_frames(golden):
    frame = Frame.FromString(bytes.fromhex(golden["hex"]))
    assert wire(frame).hex() == golden["hex"]
    assert plain(json.loads(json_format.MessageToJson(frame))) == plain(json.loads(golden["json"]))
    for text in [golden["json"], *golden["accepts"]]:
        assert json_format.Parse(text, Frame()) == frame


REFUSED_BY_ALL = [golden for golden in lines("refused.jsonl") if not golden.get("strict")]


@pytest.mark.parametrize("golden", REFUSED_BY_ALL, ids=lambda golden: golden.get("json", golden.get("hex")))
def test_refused(golden):
    with pytest.raises((json_format.ParseError, message.DecodeError)):
        if "json" in golden:
            json_format.Parse(golden["json"], Frame())
        else:
            Frame.FromString(bytes.fromhex(golden["hex"]))
