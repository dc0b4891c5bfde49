"""What the README shows is tried, as far as Python can; its calls are tried in tests/grpcurl, its page in tests/browser."""

import json
import os
import re
import subprocess
import sys

import pytest
from support import ROOT, TIMEOUT

README = (ROOT / "README.md").read_text()


def block(language):
    return re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def readme_worker(gateway):
    source = block("python").replace("127.0.0.1:7080", gateway.address)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/.gen"), "no_proxy": "127.0.0.1"}
    process = subprocess.Popen([sys.executable, "-c", source], env=environment, stderr=subprocess.DEVNULL)
    yield
    process.terminate()
    process.wait(TIMEOUT)


def test_the_worker_answers(attach, face, readme_worker):
    asker = attach(face)
    message = re.search(r"'(\{\"id\":\"msg-123\".*?\})'", block("js"))[1]
    asker.send_frame(json.loads(message))
    replies = asker.answer("msg-123")
    assert "".join(reply.get("text", "") for reply in replies) == "You asked for HEA synthesis "
    assert replies[-1]["final"] is True


def test_the_files_that_it_names_exist():
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_it_has_two_commands_for_a_fresh_machine():
    first, second = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[:2]
    assert (first.strip(), second.strip()) == ("cargo run --release -- dev", "tests/run")
