"""What replica selection and load recording add to a router, beside a hash of the position.

The router scores 256 experts and takes the 8 best of every token; without a balancer its ids are
passed on as they are. `hash` is the rule by position (vLLM's, in the fewest plain operations),
`selection` is ours. Where vLLM is installed and has a kernel for the device, its own runs too.
Best of several repeats that take turns in one run: the machine may do other things.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch import device as Device  # noqa: E402, N812

from eplbd_vllm.selection import map_and_record  # noqa: E402
from tests.selection.devices import device_named  # noqa: E402
from tests.selection.reference import KNUTH, WORD  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # The compiler imports parts of torch that torch itself deprecates.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

EXPERTS, SLOTS, TOPK, WIDTH = 256, 288, 8, 1024
DECODE, PREFILL = (1, 16, 64, 256), 8192

Way = Callable[..., Tensor]


def route(scores: Tensor) -> Tensor:
    """`[tokens, TOPK]` from `[tokens, EXPERTS]`: the router without a balancer."""
    ids: Tensor = torch.topk(scores.softmax(1), TOPK).indices
    return ids


def by_hash(
    ids: Tensor, load: Tensor, physical: Tensor, count: Tensor, record: Tensor, unpadded: Tensor
) -> Tensor:
    """The rule by position, in the fewest plain operations."""
    token = torch.arange(ids.shape[0], device=ids.device)[:, None]
    replica = (token * KNUTH & (WORD - 1)) % count[ids]
    slots = physical[ids, replica]
    weight = ((token < unpadded) & record).to(load.dtype).expand_as(slots)
    load.index_add_(0, slots.flatten(), weight.flatten())
    return slots


def engines_own(device: Device) -> dict[str, Way]:
    """The function of an installed vLLM, but on a CPU, where it passes the ids on."""
    if device.type == "cpu" or find_spec("vllm") is None:
        return {}
    module = import_module("vllm.model_executor.layers.fused_moe.router.base_router")
    return {"vllm": module.eplb_map_to_physical_and_record}


def tables_on(device: Device) -> tuple[Tensor, ...]:
    """Counter, map, replica counts, gate and unpadded tokens; 32 experts have two replicas."""
    held = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(0))
    physical = torch.full((EXPERTS, WIDTH), -1)
    physical[:, 0] = held[:EXPERTS]
    physical[: SLOTS - EXPERTS, 1] = held[EXPERTS:]
    return (
        torch.zeros(SLOTS, dtype=torch.int32, device=device),
        physical.to(device),
        (physical >= 0).sum(1).to(device),
        torch.tensor(data=True, device=device),
        torch.tensor(PREFILL, dtype=torch.int32, device=device),
    )


def best_s(
    calls: dict[str, Callable[[], object]], device: Device, seconds: float
) -> dict[str, float]:
    """Seconds per call of each, the best of repeats that take turns for about `seconds`."""
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(5):
                call()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            best[name] = min(best[name], (time.perf_counter() - start) / 5)
    return best


def captured(way: Way, *inputs: Tensor) -> Callable[[], object]:
    """The call as it is replayed while decoding, where the device has graphs; else as it is."""
    way(*inputs)
    if inputs[0].device.type != "cuda":
        return lambda: way(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        way(*inputs)
    replay: Callable[[], object] = graph.replay
    return replay


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["cpu", "cuda", "npu"])
def test_selection_beside_the_router(name: str, compiled: bool) -> None:
    device = device_named(name)
    torch.set_num_threads(1)
    tables = tables_on(device)
    ways: dict[str, Way] = {"router": route, "hash": by_hash, "selection": map_and_record}
    ways |= engines_own(device)
    if compiled:
        ways = {w: torch.compile(f, fullgraph=True, dynamic=True) for w, f in ways.items()}
    print()
    for tokens in (*DECODE, PREFILL):
        scores = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(tokens))
        ids = route(scores.to(device))
        calls = {
            way: captured(function, *((scores.to(device),) if way == "router" else (ids, *tables)))
            for way, function in ways.items()
        }
        taken = best_s(calls, device, seconds=0.5 if tokens < PREFILL else 2.0)
        router = taken.pop("router")
        adds = (f"{w} + {s * 1e6:.0f} us ({1 + s / router:.2f} times)" for w, s in taken.items())
        print(f"{name}, {tokens} tokens: router {router * 1e6:.0f} us, " + ", ".join(adds))
        # Room for a busy machine; the figures are those printed. The selection counts queues, for
        # which a hash has no need, and in a prefill stays a fraction of the scoring.
        assert taken["selection"] < 12 * taken["hash"]
        assert tokens < PREFILL or taken["selection"] < router
