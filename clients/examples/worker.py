"""A backend in plain grpcio: serves a role, streams its answers, stops when it is told to, and outlives its connection.

    python worker.py [ADDRESS] [ROLE] [WORKER_ID]

SIGTERM has it finish what it has, take nothing new, and leave. Where the gateway wants to know who it is, the variable
TWINSPAN_TOKEN has its token or API key.
"""

import os
import queue
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from twinspan.v1 import frame_pb2 as pb
from twinspan.v1 import gateway_pb2_grpc

PAUSE = 0.03  # seconds between two words, as a model that thinks
AGAIN = 1.0  # seconds until a lost connection is made anew
AT_ONCE = 8  # requests
CREDENTIAL = [("authorization", f"Bearer {token}")] if (token := os.environ.get("TWINSPAN_TOKEN")) else None


def answer(query):
    return (
        f"You asked for “{query}”. High-entropy alloys hold five or more elements in nearly equal parts. They are made by arc "
        "melting, by mechanical alloying and spark plasma sintering, or atom by atom in sputtered films; rapid cooling keeps "
        "the mixture in one solid solution before brittle phases can form. Näheres: 高熵合金 🧪"
    )


class Task:
    """A request, and its answer: so many chunks, and then the end, whose index is their number."""

    def __init__(self, request):
        self.request = request
        self.key = (request.session_id, request.id)
        # A request that asks for nothing has an empty query.
        query = request.payload.struct_value.fields["query"].string_value
        self.chunks = [word + " " for word in answer(query).split(" ")]
        self.index = 0  # of the next reply
        self.error = None

    def stop(self):
        """What is there is all there will be, and the end says why."""
        if self.index <= len(self.chunks):
            self.chunks = self.chunks[: self.index]
            self.error = pb.Error(code=pb.CANCELLED, reason="STOPPED", message="the worker was told to stop")

    def reply(self):
        frame = pb.Frame(session_id=self.key[0], reply_to=self.key[1], attempt=self.request.attempt, index=self.index)
        if self.index < len(self.chunks):
            frame.type, frame.text = "stream_chunk", self.chunks[self.index]
        else:
            frame.type, frame.final = "stream_end", True
            if self.error:
                frame.error.CopyFrom(self.error)
        self.index += 1
        return frame


class Worker:
    def __init__(self, address, role, worker_id):
        self.address, self.role, self.worker_id = address, role, worker_id
        self.changed = threading.Condition()  # guards all of these
        self.at_work = {}  # until the gateway has acked the end
        self.serving = self.draining = self.drained = self.done = False
        self.outgoing = queue.SimpleQueue()

    def run(self):
        with ThreadPoolExecutor(AT_ONCE) as self.pool:
            while not self.attend():
                time.sleep(AGAIN)

    def attend(self):
        """One connection's worth of work; whether it was the last."""
        self.outgoing = queue.SimpleQueue()
        self.outgoing.put(self.serve())
        try:
            with grpc.insecure_channel(self.address) as channel:
                stream = gateway_pb2_grpc.GatewayStub(channel).Attach
                for frame in stream(iter(self.outgoing.get, None), metadata=CREDENTIAL):
                    self.receive(frame)
        except grpc.RpcError as error:
            print(f"lost {self.address}: {error.details()}", flush=True)
        self.outgoing.put(None)  # for grpcio's thread that reads it
        with self.changed:
            self.serving = False
            if self.done or self.draining:
                self.at_work.clear()
            self.changed.notify_all()
        return self.done or self.draining

    def serve(self):
        holds = [pb.Hold(session_id=s, request_id=r, attempt=task.request.attempt) for (s, r), task in self.at_work.items()]
        serve = pb.Serve(role=self.role, worker_id=self.worker_id, max_in_flight=AT_ONCE, holds=holds, drain=self.draining)
        return pb.Frame(serve=serve)

    def drain(self):
        self.draining = True
        self.outgoing.put(self.serve())

    def receive(self, frame):
        body = frame.WhichOneof("body")
        with self.changed:
            if body == "serving":
                self.resume(frame.serving)
            elif body == "ack":
                for accepted in frame.ack.accepted:
                    task = self.at_work.get((accepted.session_id, accepted.reply_to))
                    if task and accepted.index == len(task.chunks):
                        del self.at_work[task.key]
            elif body == "cancel":
                task = self.at_work.get((frame.session_id, frame.cancel.request_id))
                if task and frame.cancel.attempt != task.request.attempt:
                    pass  # of an attempt before this one
                elif task and frame.cancel.HasField("grace"):
                    task.stop()
                elif task:  # it is over, or another worker's
                    del self.at_work[task.key]
            elif body == "retired":
                print(f"retired: {frame.retired.error.message}", flush=True)
                self.done = True
            elif body == "error":
                print(f"refused: {frame.error.reason}: {frame.error.message}", flush=True)
            elif frame.attempt:
                task = Task(frame)
                self.at_work[task.key] = task
                self.pool.submit(self.work, task)
            if self.drained and not self.at_work:
                self.done = True
            if self.done:
                self.outgoing.put(None)  # we send no more; the gateway ends the stream
            self.changed.notify_all()

    def resume(self, serving):
        """Goes on where the gateway is with each answer, and forgets those that it has given to others."""
        if not self.serving:
            held = {(hold.session_id, hold.request_id): hold.chunks for hold in serving.held}
            self.at_work = {key: task for key, task in self.at_work.items() if key in held}
            for key, task in self.at_work.items():
                task.index = held[key]
            print(f"serving {self.role} at {self.address} as {self.worker_id}", flush=True)
        self.serving = True
        self.drained = serving.draining  # from here on nothing new comes; an operator may have wanted it, too

    def work(self, task):
        def is_over():
            return self.at_work.get(task.key) is not task

        def has_turn():
            return is_over() or (self.serving and task.index <= len(task.chunks))

        while True:
            with self.changed:
                self.changed.wait_for(has_turn)
                if is_over():
                    return
                self.outgoing.put(task.reply())
            time.sleep(PAUSE)


def main(address="127.0.0.1:7080", role="brain", worker_id=f"{socket.gethostname()}:{os.getpid()}"):
    worker = Worker(address, role, worker_id)
    signal.signal(signal.SIGTERM, lambda *_: worker.drain())
    worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
