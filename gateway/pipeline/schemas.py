"""Whether an answer is the JSON that its request asked for (`response_format`)."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

_CHECKED_AT_ONCE = 64
"""So many schemas are kept ready; a template has one."""


def fits(answer: str, asked: object) -> bool:
    """Whether an answer keeps to `response_format`: any JSON object, or one that its schema allows. What asks for
    nothing, or for something that is no schema, is kept by every answer."""
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind not in ("json_object", "json_schema"):
        return True
    try:
        value = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
    if kind == "json_object":
        return isinstance(value, dict)
    inner = asked.get("json_schema") if isinstance(asked, dict) else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        return True
    try:
        return _allows(msgspec.json.encode(schema, order="sorted"), value)
    except RecursionError:
        return False


def _allows(schema: bytes, value: Any) -> bool:
    from referencing.exceptions import Unresolvable

    validator = _validator(schema)
    try:
        return validator is None or bool(validator.is_valid(value))
    except Unresolvable:
        return True  # the schema points elsewhere: nobody here can tell


@functools.lru_cache(_CHECKED_AT_ONCE)
def _validator(schema: bytes) -> Any:
    """What checks values by a schema; None where it is no JSON Schema. References are never fetched: a schema comes
    from traffic, and must not make us call anybody."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    read = msgspec.json.decode(schema)
    try:
        Draft202012Validator.check_schema(read)
    except SchemaError:
        return None
    return Draft202012Validator(read, registry=Registry())
