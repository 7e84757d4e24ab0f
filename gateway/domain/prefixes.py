"""Which of many texts does a text begin with? And end with? A tree that reads each character once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class _Node(NamedTuple):
    """`edge` is the text that leads here, `here` the members whose text ends here."""

    edge: str
    here: int
    children: dict[str, _Node]


class Prefixes:
    """Members, each a bit of an integer, with a text of its own: the beginning (or ending) of others.

    A radix tree. `find` compares each character of the text at most once, and takes as many steps as there
    are forks on its way.
    """

    def __init__(self, texts: Iterable[tuple[str, int]], *, ending: bool = False) -> None:
        """`texts`: each with the bits of the members that it stands for. `ending`: look from the end."""
        self._ending = ending
        bits: dict[str, int] = {}
        for text, members in texts:
            key = text[::-1] if ending else text
            bits[key] = bits.get(key, 0) | members
        self._root = _tree(bits, ending)
        self.sizes = tuple(members.bit_count() for members in bits.values())

    def find(self, text: str) -> int:
        """The bits of all members whose text this text begins (or ends) with."""
        return self._find_ending(text) if self._ending else self._find_beginning(text)

    def _find_beginning(self, text: str) -> int:
        found, at, node = 0, 0, self._root
        while node is not None and text.startswith(node.edge, at):
            at += len(node.edge)
            found |= node.here
            node = node.children.get(text[at : at + 1])
        return found

    def _find_ending(self, text: str) -> int:
        found, at, node = 0, len(text), self._root
        while node is not None and text.endswith(node.edge, 0, at):
            at -= len(node.edge)
            found |= node.here
            node = node.children.get(text[at - 1 : at]) if at else None
        return found


def _tree(bits: dict[str, int], ending: bool) -> _Node | None:
    """The tree over these keys; keys of endings are reversed, edges are the right way round."""
    root: dict[str, _Node] = {}
    work = [(root, sorted(bits), 0)] if bits else []
    while work:
        siblings, keys, start = work.pop()
        shared = shared_start(keys[0], keys[-1])
        edge, children = keys[0][start:shared], dict[str, _Node]()
        here = bits[keys[0]] if len(keys[0]) == shared else 0
        siblings[keys[0][start : start + 1]] = _Node(edge[::-1] if ending else edge, here, children)
        forks: dict[str, list[str]] = {}
        for key in keys[1:] if len(keys[0]) == shared else keys:
            forks.setdefault(key[shared], []).append(key)
        work += [(children, members, shared) for members in forks.values()]
    return next(iter(root.values()), None)


def shared_start(one: str, other: str) -> int:
    """How many characters two texts begin with alike: halved, since a prompt may have hundreds of thousands."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low
