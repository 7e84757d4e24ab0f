"""Writes leave together at the end of a turn, in their order, and large ones at once."""

from __future__ import annotations

import asyncio

from gateway.upstreams.outbox import FULL_BYTES, Outbox


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed


def test_what_is_written_in_a_turn_leaves_at_its_end_in_order() -> None:
    async def told() -> None:
        outbox, one, other = Outbox(), Transport(), Transport()
        outbox.write(one, b"a")
        outbox.write(other, b"b")
        outbox.write(one, b"c")
        assert (one.sent, other.sent) == ([], [])
        await asyncio.sleep(0)
        assert (one.sent, other.sent) == ([b"a", b"c"], [b"b"])
        outbox.write(one, b"d")  # and again in the next turn
        await asyncio.sleep(0)
        assert one.sent == [b"a", b"c", b"d"]

    asyncio.run(told())


def test_a_full_one_does_not_wait_so_that_back_pressure_is_felt_in_time() -> None:
    async def told() -> None:
        outbox, one = Outbox(), Transport()
        outbox.write(one, b"a")
        outbox.write(one, bytes(FULL_BYTES))
        assert one.sent == [b"a", bytes(FULL_BYTES)]
        await asyncio.sleep(0)
        assert len(one.sent) == 2

    asyncio.run(told())


def test_nothing_is_sent_to_who_has_gone() -> None:
    async def told() -> None:
        outbox, one, other = Outbox(), Transport(), Transport()
        outbox.write(one, b"a")
        outbox.write(other, b"b")
        one.closed = True
        outbox.flush()
        assert (one.sent, other.sent) == ([], [b"b"])

    asyncio.run(told())


def test_what_must_be_done_before_anything_leaves_is_done_then_and_the_rest_when_all_has_left() -> None:
    async def told() -> None:
        outbox, one, order = Outbox(), Transport(), list[str]()
        outbox.before(lambda: order.append(f"before, {len(one.sent)} sent"))
        outbox.afterwards(lambda: order.append(f"afterwards, {len(one.sent)} sent"))
        outbox.write(one, b"a")
        await asyncio.sleep(0)
        assert order == ["before, 0 sent", "afterwards, 1 sent"]
        outbox.before(lambda: order.append("before nothing"))
        await asyncio.sleep(0)
        assert order[2:] == ["before nothing"]

    asyncio.run(told())
