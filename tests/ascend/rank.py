"""One rank of vllm-ascend on CPU, a process: `python -m tests.ascend.rank`, told on stdin.

Serves until every rank has come through some epochs, then looks at all that it holds: every tensor
of every slot against the same expert made by the same sources elsewhere, every map against the
engine's own arithmetic.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from tests.ascend import stubs
from tests.ascend.control import Report, Setting

if TYPE_CHECKING:
    from eplbd_vllm.torch_guest import Guest
    from tests.ascend.engine import Engine

MEETING = timedelta(seconds=60)
SERVE_S = 60.0
"""Until all ranks have come through their epochs; a few seconds."""
PERIOD_S = 0.01


def main() -> None:
    """Play one case after the other: serve, look, tell."""
    first = msgspec.json.decode(sys.stdin.buffer.readline(), type=Setting)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")
    os.environ.update(GLOO_SOCKET_IFNAME="lo", VLLM_VERSION="0.23.0", DYNAMIC_EPLB="true")
    stubs.install(Path(first.source))
    # First: what it is imported by imports it in turn.
    from tests.ascend.engine import load

    load("quantization.methods.w8a8_dynamic")
    load("ops.fused_moe.fused_moe")
    store = TCPStore("127.0.0.1", first.port, None, False, MEETING)
    dist.init_process_group("gloo", store=store, rank=first.rank, world_size=first.ranks)
    os.write(1, msgspec.json.encode(serve(first)) + b"\n")
    for line in sys.stdin.buffer:
        # The next engine forks, and a child hangs that is the one to end the last one's transports:
        # their threads are not there.
        gc.collect()
        setting = msgspec.json.decode(line, type=Setting)
        os.write(1, msgspec.json.encode(serve(setting)) + b"\n")
    dist.destroy_process_group()


def serve(setting: Setting) -> Report:
    """Attach, run forwards, come to a common end."""
    from torch.distributed.distributed_c10d import _get_default_store

    from eplbd_vllm.ascend import entry, torch_engine
    from eplbd_vllm.ascend.torch_maps import Maps
    from eplbd_vllm.settings import Settings
    from eplbd_vllm.torch_guest import Guest
    from tests.ascend.audit import Audit
    from tests.ascend.engine import Engine

    engine = Engine(setting)
    settings = Settings(setting.socket, "tiny", "auto", 2)
    store = PrefixStore(f"case{setting.number}", _get_default_store())
    # A process serves one engine only; here, each case has a part of the store to itself.
    vars(torch_engine)["_get_default_store"] = lambda: store
    audit = Audit(engine)
    with ExitStack() as stack:
        stack.callback(end, engine)
        guest, complaint = entry.invite(engine.worker, settings)
        if guest is None:
            return Report(setting.rank, complaint=complaint, retired=audit.retired())
        assert isinstance(guest, Guest)
        stack.callback(guest.leave)
        epoch = forwards(setting, engine, guest)
        assert isinstance(guest.maps, Maps)
        assert guest.executor is not None
        placement = guest.maps.placement
        return Report(
            rank=setting.rank,
            epoch=epoch,
            digest=placement.digest,
            received_bytes=guest.executor.statistics().bytes_received,
            forwards=engine.forwards,
            checked_bytes=audit.contents(placement),
            retired=audit.retired(),
            recorded=audit.recorded(guest.leave),
            wrong=[*audit.wrong, *audit.maps(placement), *audit.addresses()],
        )


def forwards(setting: Setting, engine: Engine, guest: Guest) -> int:
    """Run them until every rank has come through its epochs, or time is up; epochs of this one."""
    deadline = time.monotonic() + SERVE_S
    going, epoch = torch.ones(1), 0
    while going.item():
        began = time.monotonic()
        guest.before_forward()
        engine.forward()
        guest.after_forward(64, dummy=False, phase=0)
        assert guest.agent is not None
        epoch = guest.agent.machine.epoch
        going.fill_(epoch < setting.epochs and began < deadline)
        dist.all_reduce(going)
        time.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))
    return epoch


def end(engine: object) -> None:
    """Leave no process behind, whatever happened."""
    for child in getattr(engine, "children", ()):
        if child.is_alive():
            child.kill()
            child.join()


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
