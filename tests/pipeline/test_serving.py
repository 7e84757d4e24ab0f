"""Who serves a task: the routes decide, whoever wrote them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from stories import keep, traffic

from gateway.config import load_routes
from gateway.dashboard import facts
from gateway.pipeline.cycle import Workshop, turn
from gateway.pipeline.overview import overview
from gateway.pipeline.promotions import standing
from gateway.pipeline.serving import in_force, serves, serving

INCUMBENT = {"upstream": "openai", "model": "gpt-6", "weight": 5}
CANDIDATE = {"upstream": "local", "model": "mail-1", "weight": 95, "strip": "mail@1"}


def route(*targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "mail", "match": {"model": "gpt-6", "task": "mail"}, "targets": list(targets), **more}


def told(shop: Workshop, *routes: dict[str, Any]) -> str:
    """What is said of the task with these routes in the file."""
    shop.routes.parent.mkdir(parents=True, exist_ok=True)
    shop.routes.write_text(yaml.safe_dump({"routes": list(routes)}))
    (row,) = overview(shop.store, shop.config, load_routes(shop.routes, shop.config))
    return serves(row)


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ([], ""),
        ([route(INCUMBENT)], ""),
        ([route(CANDIDATE | {"weight": 3}, INCUMBENT | {"weight": 1})], "served by mail-1: 75 % of the requests"),
        ([route(CANDIDATE | {"strip": "notes@1"}, INCUMBENT)], ""),
        ([route(INCUMBENT, shadow={"upstream": "local", "model": "mail-1", "strip": "mail@1"})],
         "mail-1: in the shadow"),
        ([route(CANDIDATE | {"weight": 0}, INCUMBENT)], ""),
        ([{"name": "off", "match": {"model": "gpt-6"}, "targets": [INCUMBENT]}, route(CANDIDATE)], ""),
        ([{"name": "off", "match": {"task": "mail"}, "targets": [INCUMBENT]}, route(CANDIDATE)], ""),
        ([{"name": "notes", "match": {"task": "notes"}, "targets": [INCUMBENT]}, route(CANDIDATE)],
         "served by mail-1: 100 % of the requests"),
        ([{"name": "vip", "match": {"model": "gpt-6", "tags": {"who": "vip"}}, "targets": [INCUMBENT]},
          route(CANDIDATE)], "served by mail-1: 100 % of the requests"),
    ],
)  # fmt: skip
def test_a_route_that_a_person_has_written(shop: Workshop, routes: list[Any], said: str) -> None:
    keep(shop.store, traffic(10))
    assert told(shop, *routes) == (f"{said}, as routes.yaml says" if said else "")


def test_what_was_promoted_and_changed_by_hand_afterwards(shop: Workshop) -> None:
    keep(shop.store, traffic(500))
    decision = turn(shop, "mail")
    assert decision is not None
    assert decision.promote
    written = shop.routes.read_text()
    (row,) = overview(shop.store, shop.config, in_force(shop.routes, shop.config))
    (promotion,) = standing(shop.store, "mail")
    assert row["serving"] == serving("mail", promotion, None)  # nobody has touched it
    (promoted,) = yaml.safe_load(written)["routes"]
    promoted["targets"][0]["weight"], promoted["targets"][1]["weight"] = 20, 80
    assert told(shop, promoted).startswith(f"served by {promotion['target']}: 20 % of the requests, since 20")
    assert told(shop) == ""  # taken out
    assert facts.board(shop.store, shop.config, in_force(shop.routes, shop.config)).served == 0


def test_of_a_file_with_a_problem_nobody_can_say_what_is_in_force(shop: Workshop) -> None:
    shop.routes.parent.mkdir(parents=True, exist_ok=True)
    shop.routes.write_text("routes: [")
    assert in_force(shop.routes, shop.config) is None
