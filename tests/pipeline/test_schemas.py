"""An answer is learnt only if it is the JSON that its request asked for."""

from __future__ import annotations

from typing import Any

import pytest
from stories import asked, exchange, keep, traffic

from gateway.pipeline.dataset import build
from gateway.pipeline.schemas import fits
from gateway.stores.sqlite import SqliteStore

SCHEMA = {
    "type": "object", "required": ["intent"], "additionalProperties": False,
    "properties": {"intent": {"enum": ["refund", "delivery"]}, "item": {"type": "string"}},
}  # fmt: skip


def schema(inner: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "mail", "schema": inner}}


@pytest.mark.parametrize(
    ("answer", "asked_for", "fit"),
    [
        ('{"intent": "refund"}', schema(SCHEMA), True),
        ('{"intent": "refund", "item": "kettle"}', schema(SCHEMA), True),
        ('{"intent": "praise"}', schema(SCHEMA), False),
        ('{"intent": "refund", "more": 1}', schema(SCHEMA), False),
        ("{}", schema(SCHEMA), False),
        ("refund", schema(SCHEMA), False),
        ('```json\n{"intent": "refund"}\n```', schema(SCHEMA), False),
        ('{"a": 1}', {"type": "json_object"}, True),
        ("[1]", {"type": "json_object"}, False),
        ("not JSON", {"type": "json_object"}, False),
        ("[" * 100_000, {"type": "json_object"}, False),
        ("anything", {"type": "text"}, True),
        ("anything", None, True),
        ("{}", schema(None), True),
        ("{}", schema({"type": "no such type"}), True),
        ("{}", {"type": "json_schema"}, True),
        ("{}", schema({"$ref": "http://127.0.0.1:9/schema.json"}), True),
        ('{"child": {"child": 1}}', schema({"$defs": {"n": {"properties": {"child": {"$ref": "#/$defs/n"}},
                                                            "type": "object"}}, "$ref": "#/$defs/n"}), False),
        ("1", schema({"$ref": "#"}), False),
    ],
)  # fmt: skip
def test_what_fits(answer: str, asked_for: Any, fit: bool) -> None:
    assert fits(answer, asked_for) is fit


def test_an_answer_that_breaks_its_schema_is_dropped_and_counted(store: SqliteStore, tmp_path: Any) -> None:
    """The format is a part of the prompt, so these requests have a template of their own."""
    from stories import template

    from gateway.domain import layout

    form = {"type": "json_object"}
    bodies = [asked(row.id, response_format=form) for row in traffic(60)]
    said = ['{"intent": "refund"}'] * 55 + ["refund"] * 5
    prompt = template()
    prompt = type(prompt)(prompt.task, 1, prompt.head, bucket=layout.bucket_of(bodies[0]))
    keep(store, [exchange(n, body, text) for n, (body, text) in enumerate(zip(bodies, said, strict=True))], prompt)
    card = build(store, "mail", tmp_path).card
    assert card["dropped"] == {"not the JSON that was asked for": 5}
    assert card["rows"] == 55
