"""YAML files -> one frozen `Config` and `RouteTable`, or every problem at once."""

from gateway.config.document import InvalidConfig, Problem, problem_at
from gateway.config.routes import load_routes, parse_routes
from gateway.config.settings import (
    Config,
    ProviderConfig,
    StoreConfig,
    TaskPolicy,
    TrainerConfig,
    load_config,
)

__all__ = [
    "Config",
    "InvalidConfig",
    "Problem",
    "ProviderConfig",
    "StoreConfig",
    "TaskPolicy",
    "TrainerConfig",
    "load_config",
    "load_routes",
    "parse_routes",
    "problem_at",
]
