"""Text and label, as text classifiers take them."""

from __future__ import annotations

from gateway.formats import Example, Format, InvalidRow, Json, Reason, expect, keys_of
from gateway.formats.messages import text_of

MAX_LABEL_CHARS = 200
"""A longer answer is no label."""
_KEYS = frozenset({"text", "label"})


def write(example: Example) -> Json:
    """The example as a row.

    Raises:
        InvalidRow: its answer is a call of a tool, which is no label.
    """
    if example.answer.get("tool_calls"):
        raise InvalidRow(Reason.TOOL_CALL, "the answer calls a tool, and a label is a text")
    return {"text": example.text, "label": text_of(example.answer)}


def check(row: Json) -> None:
    """Check one row.

    Raises:
        InvalidRow: it is no text with a label.
    """
    keys_of(row, _KEYS, _KEYS, "the row")
    for name in sorted(_KEYS):
        expect(row[name], str, f"'{name}'")
    if not row["text"].strip():
        raise InvalidRow(Reason.MISSING_CONTENT, "the text is empty")
    if not row["label"].strip():
        raise InvalidRow(Reason.EMPTY_ANSWER, "the label is empty")
    if len(row["label"]) > MAX_LABEL_CHARS:
        raise InvalidRow(Reason.TOO_LONG, f"a label of {len(row['label'])} characters, over {MAX_LABEL_CHARS}")


FORMAT = Format(name="classifier", write=write, check=check)
