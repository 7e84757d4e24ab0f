"""The demo's second story: who asks what, and what is read from the routes. The story itself is `unprompt demo
--story drift`, three minutes."""

from __future__ import annotations

from pathlib import Path

import yaml
from rich.console import Console

from gateway.demo import outcome
from gateway.demo.drift import shift, stripped_by
from gateway.demo.stage import Options


def test_some_kinds_of_message_come_only_with_the_second_prompt() -> None:
    told = shift(Options(seed=3))
    early, late = {row.label for row in told.early}, {row.label for row in told.late}
    assert early < late
    assert len(late - early) == 3
    assert told.before.request("hello") != told.after.request("hello")
    assert told.after.answer("refund") == "REFUND"  # the second prompt asks for capital letters
    assert not {row.text for row in told.held_out} & {row.text for row in told.late}


def test_what_the_routes_take_away(tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    assert stripped_by(routes) == {}
    targets = [{"upstream": "local", "model": "m", "strip": "mail@2"}, {"upstream": "openai"}]
    routes.write_text(yaml.safe_dump({"routes": [{"name": "mail", "targets": targets}]}))
    assert stripped_by(routes) == {"local/m stripped": "mail@2"}
    routes.write_text("routes:\n")
    assert stripped_by(routes) == {}


def test_the_timeline_is_printed_with_what_the_app_saw() -> None:
    figures = {"requests": 50, "stripped_share": 0.0, "accuracy": 0.98, "errors": 0}
    console = Console(record=True, width=100)
    outcome.show_drift({
        **dict.fromkeys(("before", "at_once", "between", "after"), figures),
        "timeline": [{"seconds": 57.5, "requests": 900, "what": "the app ships its second prompt"}],
        "wrong_strips": 0, "promotions": 2, "rollbacks": 0, "requests_until_promoted_again": 650, "seconds": 107.0,
        "home": "here",
    }, console)  # fmt: skip
    text = console.export_text()
    for said in ("57.5", "900", "the app ships its second prompt", "0 requests wrongly stripped", "650 requests"):
        assert said in text, said
