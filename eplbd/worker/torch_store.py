"""Clients of a `torch.distributed` store: one per user, with a deadline.

Owns how a client of our own is made from the engine's. It must not know what is kept in the store.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol, runtime_checkable

# `torch.distributed` passes it on without telling type checkers.
from torch._C._distributed_c10d import Store

from eplbd.errors import ConfigError


@runtime_checkable
class _Clonable(Protocol):
    """`Store.clone`, which torch has since 2.8 and its stubs do not mention."""

    def clone(self) -> Store: ...


def own_client(store: Store, timeout_s: float) -> Store:
    """Return a client of the same store that no other thread uses; its waits end after `timeout_s`.

    A client answers one call at a time: while one thread waits for a key that does not come, every
    other caller of that client waits with it. Raises ConfigError before torch 2.8, and RuntimeError
    where the store's host cannot be reached.
    """
    if not isinstance(store, _Clonable):
        raise ConfigError("torch is too old: Store.clone() is needed, which came with torch 2.8")
    client = store.clone()
    client.set_timeout(timedelta(seconds=timeout_s))
    return client
