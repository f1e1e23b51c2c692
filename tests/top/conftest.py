"""Workers of a live daemon, as the daemon's own tests have them."""

from __future__ import annotations

from tests.runtime.conftest import connect, endpoint

__all__ = ["connect", "endpoint"]
