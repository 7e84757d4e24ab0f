"""Feedback: what a person, or the app itself, says of an exchange's answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(max_length=1_000_000)]
GIVEN = ("score", "label", "corrected_output", "comment")
"""What may be said, by the columns of the table `feedback`."""


class Feedback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One remark. `score` is from -1 (wrong) to 1 (right); `label` or `corrected_output` is what the answer
    should have been, and "" takes an earlier one back. Of each field the last word counts; null says nothing."""

    exchange_id: Annotated[str, Meta(min_length=1, max_length=200)]
    score: Annotated[float, Meta(ge=-1, le=1)] | None = None
    label: Text | None = None
    corrected_output: Text | None = None
    comment: Annotated[str, Meta(max_length=10_000)] | None = None

    @property
    def says(self) -> dict[str, Any]:
        """The fields that say something. A new label takes the place of an earlier correction, too."""
        given = {name: value for name in GIVEN if (value := getattr(self, name)) is not None}
        return {"corrected_output": "", **given} if "label" in given else given


def read_feedback(body: bytes) -> Feedback:
    """The remark in a JSON body.

    Raises:
        ValueError: it is no remark; says what is wrong.
    """
    try:
        found = msgspec.json.decode(body, type=Feedback)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{error}; send a JSON object with exchange_id and one of {', '.join(GIVEN)}") from None
    if not found.says:
        raise ValueError(f"nothing is said of the exchange; give one of {', '.join(GIVEN)}")
    return found


def standing(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What holds of each exchange, of rows of the table `feedback` from the oldest to the newest."""
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        said[row["exchange_id"]].update({name: row[name] for name in GIVEN if row[name] is not None})
    return dict(said)


def correction(said: Mapping[str, Any]) -> str | None:
    """What a person would have answered, where one has said so: the correction before the label."""
    return said.get("corrected_output") or said.get("label") or None
