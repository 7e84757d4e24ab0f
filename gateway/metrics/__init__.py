"""What Prometheus is told: every exchange counted once, in cells that all relay processes share."""

from gateway.metrics.cells import Sheet
from gateway.metrics.counting import MODELS_AT_MOST, Metrics, retire
from gateway.metrics.loop import LoopWatch
from gateway.metrics.table import TABLE

__all__ = ["MODELS_AT_MOST", "TABLE", "LoopWatch", "Metrics", "Sheet", "retire"]
