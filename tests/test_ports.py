"""A port that is ours alone, with a listening socket for each relay."""

from __future__ import annotations

import socket

import pytest

from gateway.errors import ConfigError
from gateway.ports import BALANCES, bind


def test_each_relay_gets_a_listening_socket_on_the_same_port() -> None:
    sockets = bind("127.0.0.1", 0, 3)
    ports = {one.getsockname()[1] for mine in sockets for one in mine}
    assert len(sockets) == 3
    assert len(ports) == 1
    assert len({one.fileno() for mine in sockets for one in mine}) == (3 if BALANCES else 1)
    with socket.create_connection(("127.0.0.1", ports.pop()), timeout=5):  # whoever gets it: it is accepted
        pass
    for mine in sockets:
        for one in mine:
            one.close()


def test_a_port_that_others_share_among_themselves_is_not_joined() -> None:
    theirs = bind("127.0.0.1", 0, 2)
    port = theirs[0][0].getsockname()[1]
    with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*choose another with --port"):
        bind("127.0.0.1", port, 2)
    for mine in theirs:
        for one in mine:
            one.close()


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_a_host_that_is_not_ours_is_said_in_a_sentence(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        bind(host, 0, 2)
