"""How much is under way at once, and when it is too much."""

from __future__ import annotations

from gateway.domain.route import Route
from gateway.errors import BodyTooLarge, TooManyRequests

FILES_KEPT_FREE = 32
"""At least so many file descriptors are not for clients, and one in 16 where there are many: connections to
upstreams, the journal, own pages and saying no to a client need some, too."""


class Seats:
    """Requests under way by name. A name whose last request has left is forgotten."""

    __slots__ = ("_taken",)

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}

    def take(self, name: str, limit: int) -> bool:
        """Take a seat, if fewer than `limit` are taken."""
        taken = self._taken.get(name, 0)
        if taken >= limit:
            return False
        self._taken[name] = taken + 1
        return True

    def leave(self, name: str) -> None:
        """Give a seat back that was taken."""
        taken = self._taken[name] - 1
        if taken:
            self._taken[name] = taken
        else:
            del self._taken[name]

    def taken(self, name: str) -> int:
        """How many seats of this name are taken."""
        return self._taken.get(name, 0)


def take_seats(seats: Seats, route: Route, key_id: str | None) -> tuple[str, ...]:
    """The names of the seats that a request takes on its route: its end gives them back.

    Raises:
        TooManyRequests: there is none left; then no seat is taken.
    """
    limits = route.limits
    taken: list[str] = []
    if limits is None:
        return ()
    wanted = [(route.name, limits.concurrency, f"route {route.name!r}")]
    if key_id is not None:
        wanted.append((f"{route.name}\0{key_id}", limits.concurrency_per_key, "this key"))
    for name, limit, who in wanted:
        if limit is None:
            continue
        if not seats.take(name, limit):
            for given in taken:
                seats.leave(given)
            raise TooManyRequests(f"{who} has {limit} requests under way, which is its limit; try again shortly")
        taken.append(name)
    return tuple(taken)


def check_size(route: Route, size: int) -> None:
    """Whether the route takes a request body of so many bytes.

    Raises:
        BodyTooLarge: it does not.
    """
    limit = route.limits.body_bytes if route.limits is not None else None
    if limit is not None and size > limit:
        raise BodyTooLarge(
            f"the body is larger than the {limit >> 20} MB of route {route.name!r}; raise its limits.max_body_mb"
        )


def clients_at_most(files: int) -> int:
    """How many clients a process takes that may have so many files open.

    Each costs it one, and an upstream's only while it asks for something, over connections that all share: a
    quarter of the files is for those, and who finds them used up all the same is told to come back.
    """
    return max(16, (files - 128) * 3 // 4)


def is_short_of_files(file_number: int, files_at_most: int) -> bool:
    """Whether a connection with this descriptor is one too many for the process.

    POSIX gives out the lowest free number, so a high one means that all below it are taken. Told before
    `accept` fails: uvloop then takes connections only to close them at once, and the client learns nothing.
    """
    return file_number >= files_at_most - max(FILES_KEPT_FREE, files_at_most // 16)
