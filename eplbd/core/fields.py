"""How a message declares an array.

Owns the metadata that the codec reads: dtype and number of dimensions. Must not know frames.
"""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def array(dtype: str | None, ndim: int, default: object = MISSING) -> Any:  # noqa: ANN401 - as `field` itself
    """Declare an array field; `dtype` as numpy names it, little-endian on the wire; None for any.

    With `default=None` it may be left out, which the last field of a message alone may be.
    """
    return field(default=default, metadata={"dtype": dtype, "ndim": ndim})
