"""The commands: `dev`, `call`, `send`, `tail`, and those of operators."""

import json
import re
import signal
import subprocess

import pytest
import support
from support import BINARY, TIMEOUT
from websockets.sync.client import connect

EXACT = '{"id":"msg-123","type":"query","sessionId":"sess-456","payload":{"action":"search","query":"HEA synthesis"}}'


class Dev(support.Gateway):
    command = "dev"


@pytest.fixture
def dev(tmp_path):
    dev = Dev(tmp_path / "dev.log")
    yield dev
    dev.stop()


def twinspan(gateway, *arguments, code=0):
    command = [BINARY, *arguments, "--url", f"http://{gateway.address}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    assert run.returncode == code, run.stderr
    return run.stdout


def test_dev_answers_the_exact_message_and_prints_lines_that_work(dev):
    printed = dev.logged()
    assert f"ws://{dev.address}/v1/ws" in printed and EXACT in printed
    url = re.search(r'new WebSocket\("(.*?)"\)', printed)[1]
    with connect(url, proxy=None) as socket:
        socket.send(EXACT)
        text, frame = "", {}
        while not frame.get("final"):
            frame = json.loads(socket.recv(timeout=TIMEOUT))
            text += frame.get("text", "") if frame.get("replyTo") == "msg-123" else ""
    assert text == "HEA synthesis"


def test_call_prints_the_answer(dev):
    assert twinspan(dev, "call", "demo", "--text", "to be or not to be").strip() == "to be or not to be"


def test_call_tells_why_there_is_none(gateway):
    run = subprocess.run(
        [BINARY, "call", "nobody", "--text", "x", "--timeout", "300ms", "--url", f"http://{gateway.address}"],
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert run.returncode != 0 and run.stderr.strip()


def test_what_is_sent_is_seen_by_who_follows(gateway, attach):
    reader = attach("json")
    reader.join("s")
    twinspan(gateway, "send", "s", "--text", "from a terminal")
    assert reader.expect("text")["text"] == "from a terminal"
    command = [BINARY, "tail", "s", "--after", "0", "--json", "--url", f"http://{gateway.address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        frames = map(json.loads, tail.stdout)
        assert next(frame["text"] for frame in frames if "text" in frame) == "from a terminal"
        reader.send(text="live")
        assert next(frames)["text"] == "live"
        tail.terminate()


class Calling:
    """A `twinspan call` that goes on while the test looks on."""

    def __init__(self, gateway, *arguments):
        command = [BINARY, "call", *arguments, "--url", f"http://{gateway.address}"]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes)

    def ended(self):
        out, error = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out, error


@pytest.fixture
def brain(attach):
    worker = attach("grpc")
    worker.serve("brain", workerId="w-1", maxInFlight=2)
    return worker


def test_call_says_how_it_is_to_be_carried_out(gateway, brain):
    flags = ["--on-worker-loss=retry-if-silent", "--max-attempts=2", "--affinity=k", "--concurrency=queue"]
    times = ["--first-chunk-timeout=9s", "--idle-timeout=2s", "--cancel-on-disconnect=1s"]
    calling = Calling(gateway, "brain", "--text", "x", *flags, *times)
    request = brain.request()
    options = request["options"]
    timeouts = options.pop("timeouts")
    assert options == {
        "onWorkerLoss": "WORKER_LOSS_RETRY_IF_SILENT",
        "maxAttempts": 2,
        "affinity": "k",
        "concurrency": "CONCURRENCY_QUEUE",
        "onDisconnect": "ON_DISCONNECT_CANCEL_AFTER",
        "disconnectGrace": "1s",
    }
    assert timeouts["idle"] == "2s" and "firstChunk" in timeouts
    brain.reply(request, text="done", final=True)
    assert calling.ended() == (0, "done\n", "")


def test_call_waits_for_the_end_of_what_it_cancels(gateway, brain):
    calling = Calling(gateway, "brain", "--text", "x")
    request = brain.request()
    calling.process.send_signal(signal.SIGINT)
    assert brain.expect("cancel")["cancel"]["grace"] == "2s"
    brain.reply(request, text="half")
    brain.reply(request, error={"code": "CANCELLED", "reason": "STOPPED", "message": "as you wish"})
    code, out, error = calling.ended()
    assert (code, out) == (130, "half\n") and "STOPPED: as you wish" in error


def test_call_is_cancelled_when_it_is_killed(gateway, brain):
    calling = Calling(gateway, "brain", "--text", "x", "--cancel-on-disconnect")
    brain.request()
    calling.process.kill()
    assert brain.expect("cancel")["cancel"]["reason"] == "ASKER_GONE"
    calling.ended()


def test_call_tells_that_an_answer_begins_again(gateway, attach):
    worker, other = attach("json"), attach("grpc")
    worker.serve("brain")
    calling = Calling(gateway, "brain", "--text", "x", "--on-worker-loss", "restart")
    worker.reply(worker.request(), id="half", text="half an ans")
    worker.accepted("half")
    worker.vanish()
    other.serve("brain")
    other.reply(other.request(), text="an answer", final=True)
    code, out, error = calling.ended()
    assert (code, out) == (0, "half an ans\nan answer\n")
    assert "WORKER_LOST" in error and "begins again, attempt 2" in error


def test_why_tells_where_a_request_is(gateway, attach):
    asker = attach("json")
    asker.publish("s", id="q", to={"role": "brain"}, text="?")
    told = twinspan(gateway, "why", "s", "q")
    assert told.startswith("No worker serves the role brain.") and re.search(r"^place +1 of 1$", told, re.MULTILINE)
    worker = attach("grpc")
    worker.serve("brain", workerId="w-1")
    request = worker.request()
    assert re.search(r"^worker +w-1, attempt 1, 0 chunks$", twinspan(gateway, "why", "s", "q"), re.MULTILINE)
    worker.reply(request, text="!", final=True)
    asker.answer("q")
    why = json.loads(twinspan(gateway, "why", "s", "q", "--json"))
    assert (why["state"], why["finalSeq"]) == ("REQUEST_STATE_COMPLETED", "2")
    twinspan(gateway, "why", "s", "unheard-of", code=1)


def test_workers_are_listed_and_drained(gateway, brain):
    lines = twinspan(gateway, "workers").splitlines()
    assert lines[0].split() == ["ROLE", "WORKER", "STATE", "LOAD", "QUIET", "SESSIONS"]
    assert lines[1].split()[:4] == ["brain", "w-1", "ready", "0/2"]
    assert twinspan(gateway, "workers", "--role", "other").count("\n") == 1
    assert "draining" in twinspan(gateway, "drain", "brain", "w-1")
    assert brain.expect("serving")["serving"]["draining"] is True
    [worker] = json.loads(twinspan(gateway, "workers", "--json"))["workers"]
    assert (worker["workerId"], worker["state"]) == ("w-1", "WORKER_STATE_DRAINING")
    twinspan(gateway, "drain", "brain", "nobody", code=1)


def test_stats_count(gateway, brain, attach):
    asker = attach("json")
    asker.publish("s", id="q", to={"role": "brain"}, text="?")
    brain.reply(brain.request(), text="!", final=True)
    asker.answer("q")
    stats = json.loads(twinspan(gateway, "stats", "--json"))
    assert (stats["requests"], stats["completed"]) == ("1", "1")
    assert re.search(r"^requests +1$", twinspan(gateway, "stats"), re.MULTILINE)


def test_tail_tells_how_requests_get_on(gateway, attach):
    worker, other, asker = attach("json"), attach("grpc"), attach("json")
    worker.serve("brain", workerId="w-1", grace="0s")
    asker.publish("s", text="first")
    command = [BINARY, "tail", "s", "--after", "0", "--requests", "--url", f"http://{gateway.address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout.readline().endswith(": first\n")
        asker.publish("s", id="q", to={"role": "brain"}, text="?", options={"onWorkerLoss": "WORKER_LOSS_RESTART"})
        worker.request()
        worker.vanish()
        other.serve("brain", workerId="w-2")
        other.reply(other.request(), text="!", final=True)
        lines = []
        while not lines or "final" not in lines[-1]:
            lines.append(tail.stdout.readline())
        assert any("(re q): WORKER_LOST: the answer begins again, attempt 2" in line for line in lines), lines
        assert "-- request q for brain: assigned, attempt 2 by w-2\n" in lines
        tail.terminate()
