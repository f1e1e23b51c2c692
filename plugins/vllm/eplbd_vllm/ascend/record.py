"""The expert map in force, kept in a file that vllm-ascend's `expert_map_path` reads.

Owns the schema and the file: written whole, beside it and then in its place, on a thread of its
own. It must not know when maps change: the forward thread hands over a placement and goes on.

Written is what is in force. vllm-ascend's own record writes what was planned while the weights stay
where they were, and from the second cycle on attributes heat to a map that never was.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from pathlib import Path

from eplbd.core.placement import Placement

log = logging.getLogger("eplbd.worker")

STOP_S = 5.0


def as_expert_map(placement: Placement) -> dict[str, object]:
    """Return what vllm-ascend's `expert_file_to_tensor` reads: logical experts, slot by slot."""
    return {
        "moe_layer_count": placement.layers,
        "layer_list": [
            {
                "layer_id": index,
                "device_count": placement.ranks,
                "device_list": [
                    {"device_id": rank, "device_expert": slots} for rank, slots in enumerate(ranks)
                ],
            }
            for index, ranks in enumerate(placement.slots.tolist())
        ],
    }


class MapRecord:
    """Writes placements to `path`, newest last; of several that wait only the newest is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: queue.SimpleQueue[Placement | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="eplbd-record", daemon=True)
        self._thread.start()

    def put(self, placement: Placement) -> None:
        """Have it written; never waits."""
        self._waiting.put(placement)

    def close(self) -> None:
        """Let what waits be written, and end."""
        self._waiting.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (placement := self._waiting.get()) is not None:
            ending = False
            while not self._waiting.empty():
                newer = self._waiting.get()
                ending = newer is None
                placement = newer or placement
            try:
                self._write(placement)
            except OSError as error:
                log.warning("%s: the expert map cannot be written: %s", self._path, error.strerror)
            if ending:
                return

    def _write(self, placement: Placement) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(as_expert_map(placement), indent=1), encoding="utf-8")
        beside.replace(self._path)
