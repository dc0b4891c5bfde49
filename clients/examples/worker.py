"""A backend in plain grpcio: serves a role and streams its answers.

    python worker.py [ADDRESS] [ROLE]
"""

import queue
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import gateway_pb2_grpc

PAUSE = 0.03  # seconds between two words, as a model that thinks


def answer(query):
    return (
        f"You asked for “{query}”. High-entropy alloys hold five or more elements in nearly equal parts. They are made by arc "
        "melting, by mechanical alloying and spark plasma sintering, or atom by atom in sputtered films; rapid cooling keeps "
        "the mixture in one solid solution before brittle phases can form. Näheres: 高熵合金 🧪"
    )


def main(address="127.0.0.1:7080", role="brain"):
    outgoing = queue.SimpleQueue()
    at_work = set()

    def work(request):
        held = (request.session_id, request.id)

        def reply(**body):
            outgoing.put(pb.Frame(session_id=request.session_id, reply_to=request.id, attempt=request.attempt, **body))

        # A request that asks for nothing has an empty query.
        for word in answer(request.payload.struct_value.fields["query"].string_value).split(" "):
            if held not in at_work:
                return
            reply(type="stream_chunk", text=word + " ")
            time.sleep(PAUSE)
        reply(type="stream_end", final=True)
        at_work.discard(held)

    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(8) as pool:
        outgoing.put(pb.Frame(serve=pb.Serve(role=role, max_in_flight=8)))
        for frame in gateway_pb2_grpc.GatewayStub(channel).Attach(iter(outgoing.get, None)):
            if frame.WhichOneof("body") == "serving":
                print(f"serving {role} at {address}", flush=True)
            elif frame.WhichOneof("body") == "cancel":
                at_work.discard((frame.session_id, frame.cancel.request_id))
            elif frame.WhichOneof("body") == "error":
                print(f"refused: {frame.error.reason}: {frame.error.message}", flush=True)
            elif frame.attempt:
                at_work.add((frame.session_id, frame.id))
                pool.submit(work, frame)


if __name__ == "__main__":
    main(*sys.argv[1:])
