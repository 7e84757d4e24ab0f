"""YAML files -> one frozen `Config` and `RouteTable`, or every problem at once."""

from gateway.config.document import InvalidConfig, Problem
from gateway.config.routes import load_routes
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
]
