"""Fakes for our own tests and for the authors of plug-ins; nothing in the product imports this package.

`FakeOpenAI` is a real HTTP server on loopback, in a thread, that speaks the parts of the OpenAI API which a
gateway and a trainer need, keeps what it was asked, and goes wrong when told to:

    with FakeOpenAI() as api:
        api.inject(Fault(status=500, times=2, path="/v1/files"))
        client = openai.OpenAI(base_url=api.base_url, api_key="any")

`FakeTogether` and `FakeFireworks` speak the fine-tuning APIs of these services in the same way.
"""

from gateway.testing.chat import Answer, count_tokens, echo
from gateway.testing.fireworks import FakeFireworks
from gateway.testing.jobs import STATES, invalid_file, invalid_row
from gateway.testing.openai import MODELS, FakeOpenAI
from gateway.testing.server import FakeServer, Fault, Received, Refusal
from gateway.testing.together import FakeTogether

__all__ = [
    "MODELS",
    "STATES",
    "Answer",
    "FakeFireworks",
    "FakeOpenAI",
    "FakeServer",
    "FakeTogether",
    "Fault",
    "Received",
    "Refusal",
    "count_tokens",
    "echo",
    "invalid_file",
    "invalid_row",
]
