"""Fixtures for all tests that drive the gateway from outside."""

import contextlib

import pytest
import support


@pytest.fixture
def start(tmp_path):
    """Starts gateways with settings of the test's; each must stop with exit code 0 when the test is over."""
    with contextlib.ExitStack() as stack:
        count = iter(range(100))

        def start(**settings):
            gateway = support.Gateway(tmp_path / f"gateway-{next(count)}.log", **settings)
            stack.callback(gateway.stop)
            return gateway

        yield start


@pytest.fixture
def gateway(start):
    """A gateway that knows the route of the examples."""
    return start(routes="query=brain")


@pytest.fixture
def attach(gateway):
    """Connects peers, which are gone before the gateway is."""
    with contextlib.ExitStack() as stack:

        def attach(face):
            peer = support.peer(gateway, face)
            stack.callback(peer.close)
            return peer

        yield attach


@pytest.fixture(params=support.FACES)
def face(request):
    return request.param


@pytest.fixture
def sessions(gateway):
    """The Sessions service."""
    with support.channel(gateway) as channel:
        yield support.sessions(channel)


@pytest.fixture
def admin(gateway):
    """The Admin service."""
    with support.channel(gateway) as channel:
        yield support.admin(channel)


@pytest.fixture
def worker(gateway):
    """The example worker, serving the role `brain`."""
    worker = support.Worker(gateway)
    yield worker
    worker.stop()


@pytest.fixture
def bystanders(attach):
    """Two members of a session of their own, on either face, who must not notice anything of what the test does."""
    json, grpc = attach("json"), attach("grpc")
    json.join("bystanders")
    grpc.join("bystanders")
    yield
    for sender, reader, text in [(json, grpc, "still here?"), (grpc, json, "yes")]:
        sender.publish("bystanders", text=text)
        reader.expect(lambda frame: frame.get("text") == text)
    strange = [frame for frame in json.seen + grpc.seen if "error" in frame or "left" in frame]
    assert not strange
