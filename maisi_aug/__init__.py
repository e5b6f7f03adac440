"""Label-balanced synthetic CT cohorts through MAISI's ControlNet."""

from __future__ import annotations

__version__ = "0.1.0"
