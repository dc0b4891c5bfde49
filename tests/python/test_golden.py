"""The golden frames, held against Python's own protobuf library.

`frames.jsonl` has frames in both forms, with other spellings of their JSON that are read alike; `refused.jsonl` has what is
no frame. A refusal marked `strict` is one where the gateway asks for more than protobuf libraries do.

    python3 -m venv tests/.venv && tests/.venv/bin/pip install grpcio-tools protobuf pytest
    tests/.venv/bin/pytest tests/python

Run by itself, this file writes the wire form of the frames anew, as protobuf has it.
"""

import json
import pathlib
import sys

import pytest
from google.protobuf import json_format, message
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
GENERATED = ROOT / "tests" / ".gen"
GOLDEN = ROOT / "tests" / "golden"


def generate():
    GENERATED.mkdir(exist_ok=True)
    import grpc_tools

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={GENERATED}", "twinspan/v1/frame.proto"]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(GENERATED))
    from twinspan.v1 import frame_pb2

    return frame_pb2.Frame


Frame = generate()


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


@pytest.mark.parametrize("golden", lines("refused.jsonl"), ids=lambda golden: golden.get("json", golden.get("hex")))
def test_refused(golden):
    if golden.get("strict"):
        pytest.skip("the gateway asks for more than protobuf does")
    with pytest.raises((json_format.ParseError, message.DecodeError)):
        if "json" in golden:
            json_format.Parse(golden["json"], Frame())
        else:
            Frame.FromString(bytes.fromhex(golden["hex"]))


if __name__ == "__main__":
    frames = lines("frames.jsonl")
    for golden in frames:
        golden["hex"] = wire(json_format.Parse(golden["json"], Frame())).hex()
    (GOLDEN / "frames.jsonl").write_text("".join(json.dumps(golden) + "\n" for golden in frames))
