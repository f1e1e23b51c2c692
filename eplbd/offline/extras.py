"""Libraries that only some of these tools need: imported when used, missed in one sentence.

Owns that sentence. Must not know what the libraries do.
"""

from __future__ import annotations

import importlib
from typing import Any

from eplbd.errors import ConfigError


def extra(module: str, purpose: str) -> Any:  # noqa: ANN401  # a module has no better type
    """The module, or ConfigError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{purpose} needs {package}, which is not installed; pip install 'eplbd[offline]'"
        ) from error
