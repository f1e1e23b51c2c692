"""How much memory an object keeps alive: itself and all that can be reached from it.

Owns the walk. Must not know what it walks over.
"""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np

_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
"""Code: it is there once, however much there is of anything else."""


def held_bytes(root: object) -> int:
    """Bytes that `root` and everything reachable from it take, each object once."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    total = 0
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _SHARED):
            continue
        seen.add(id(item))
        if isinstance(item, memoryview):
            waiting.append(item.obj)
        elif isinstance(item, np.ndarray) and item.base is not None:
            total += 128
            waiting.append(item.base)
        else:
            total += sys.getsizeof(item)
            waiting.extend(gc.get_referents(item))
    return total
