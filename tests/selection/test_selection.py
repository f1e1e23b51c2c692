"""Selection does what its plain reference does, in place, in any form, on every device here."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402
from torch import dtype as Kind  # noqa: E402, N812
from torch.fx import GraphModule  # noqa: E402

from eplbd_vllm.selection import map_and_record  # noqa: E402
from tests.selection.devices import Call, device_named  # noqa: E402
from tests.selection.reference import Case, chosen  # noqa: E402

pytestmark = pytest.mark.slow

DEVICES = ["cpu", "cuda", "npu"]
INTEGERS = [torch.int32, torch.int64]
GRID_CELLS = 1 << 16
"""Where the way of counting changes; a case beyond it is not small any more."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small calls of every form: any rows, padding, micro-batches, ids that name no expert."""
    experts = draw(st.integers(1, 9))
    lengths = draw(st.lists(st.integers(1, 5), min_size=experts, max_size=experts))
    slots = draw(st.permutations(range(sum(lengths))))
    rows = [list(slots[sum(lengths[:e]) : sum(lengths[: e + 1])]) for e in range(experts)]
    batches = draw(st.integers(1, 3))
    tokens = batches * draw(st.integers(0, 12))
    topk = draw(st.integers(1, experts + 2))
    odd = st.permutations([*range(experts), -1, experts])
    ids = [draw(odd)[:topk] for _ in range(tokens)]
    count = st.integers(0, tokens + 3)
    blocks = st.lists(st.integers(0, tokens // batches), min_size=batches, max_size=batches)
    return Case(
        ids=[list(row) for row in ids],
        rows=rows,
        slots=sum(lengths),
        record=draw(st.sampled_from([None, True, False])),
        unpadded=draw(st.none() | count | blocks),
        first_token=draw(st.integers(0, 3)),
        offset=draw(st.integers(0, 7)),
        turn=draw(st.none() | st.integers(0, 2**31 - 1)),
    )


def large(tokens: int, *, experts: int = 64, topk: int = 4, seed: int = 0) -> Case:
    chance = random.Random(seed)
    lengths = [chance.randint(1, 5) for _ in range(experts)]
    slots = chance.sample(range(sum(lengths)), sum(lengths))
    rows = [slots[sum(lengths[:e]) : sum(lengths[: e + 1])] for e in range(experts)]
    # Hot experts, and one that every second token chooses.
    ids = []
    for token in range(tokens):
        others = chance.sample(range(1, experts), topk - 1)
        first = (
            0 if token % 2 == 0 else chance.choice([e for e in range(experts) if e not in others])
        )
        ids.append([first, *others])
    return Case(ids, rows, sum(lengths), record=True, unpadded=max(0, tokens - tokens // 7))


def agree(case: Case, call: Call) -> None:
    slots, load = chosen(case)
    assert call.run().tolist() == slots
    assert call.load.tolist() == load


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", DEVICES)
@given(case=cases())
def test_does_as_its_reference(name: str, dtype: Kind, case: Case) -> None:
    agree(case, Call.of(case, device_named(name), dtype=dtype))


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("over", [0, 4])
@pytest.mark.parametrize("unpadded", [None, 700, [256, 3, 200, 100]])
def test_both_ways_of_counting_do_as_the_reference(
    name: str, over: int, unpadded: int | list[int] | None
) -> None:
    case = large(GRID_CELLS // 64 + over)
    case.ids[1::5] = [[-1, *ids[1:]] for ids in case.ids[1::5]]
    padded = Case(case.ids, case.rows, case.slots, unpadded=unpadded)
    agree(padded, Call.of(padded, device_named(name)))


@given(cases())
def test_only_slots_of_the_expert_are_chosen(case: Case) -> None:
    for ids, slots in zip(case.ids, Call.of(case, torch.device("cpu")).run().tolist(), strict=True):
        for expert, slot in zip(ids, slots, strict=True):
            known = 0 <= expert < len(case.rows)
            assert slot in case.rows[expert] if known else slot == -1


@given(cases())
def test_counts_what_it_chose_for_tokens(case: Case) -> None:
    call = Call.of(case, torch.device("cpu"))
    slots = call.run()[torch.tensor(case.valid, dtype=torch.bool)].flatten()
    expected = torch.bincount(slots[slots >= 0], minlength=case.slots)
    assert call.load.tolist() == (expected * (case.record is not False)).tolist()


@given(cases(), st.integers(0, 99))
def test_padding_moves_no_token(case: Case, seed: int) -> None:
    other = random.Random(seed)
    ids = [
        row if is_token else other.sample(row, len(row))
        for row, is_token in zip(case.ids, case.valid, strict=True)
    ]
    tokens = torch.tensor(case.valid, dtype=torch.bool)
    mine, theirs = (
        Call.of(
            Case(i, case.rows, case.slots, unpadded=case.unpadded, first_token=case.first_token),
            torch.device("cpu"),
        ).run()[tokens]
        for i in (case.ids, ids)
    )
    assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("pads", [8, 64])
def test_padding_of_one_routing_is_spread(replicas: int, pads: int) -> None:
    rows = [[e * replicas + i for i in range(replicas)] for e in range(4)]
    case = Case([[0, 1]] * 3 + [[2, 3]] * pads, rows, 4 * replicas, unpadded=3)
    slots = Call.of(case, torch.device("cpu")).run()[3:].flatten()
    load = torch.bincount(slots, minlength=4 * replicas)[2 * replicas :]
    assert int(load.max() - load.min()) <= 1


@pytest.mark.parametrize("name", DEVICES)
def test_keeps_every_address_and_table(name: str) -> None:
    call = Call.of(large(64), device_named(name))
    held = (call.ids, call.load, call.physical, call.count)
    places = [tensor.data_ptr() for tensor in held]
    copies = [tensor.clone() for tensor in held]
    for _ in range(3):
        call.run()
    assert [tensor.data_ptr() for tensor in held] == places
    for index in (0, 2, 3):
        assert torch.equal(held[index], copies[index])


@pytest.mark.parametrize("name", DEVICES)
def test_gates_count_and_tables_take_effect_where_they_lie(name: str) -> None:
    case = large(64)
    call = Call.of(case, device_named(name))
    assert call.record is not None
    assert call.unpadded is not None
    call.record.fill_(False)
    call.run()
    assert not call.load.any()
    call.record.fill_(True)
    call.unpadded.fill_(5)
    call.physical.copy_(call.physical.flip(0))
    call.count.copy_(call.count.flip(0))
    agree(Case(case.ids, case.rows[::-1], case.slots, record=True, unpadded=5), call)


def test_micro_batches_count_as_one() -> None:
    case = large(96)
    whole = Call.of(case, torch.device("cpu"))
    assert isinstance(case.unpadded, int)
    load = torch.zeros_like(whole.load)
    for first in (0, 32, 64):
        part = Case(case.ids[first : first + 32], case.rows, case.slots, True, case.unpadded, first)
        call = Call.of(part, torch.device("cpu"))
        call.run()
        load += call.load
    whole.run()
    # Where a replica's turn comes differs, how often each expert is counted does not.
    experts = [sum(int(load[slot]) for slot in row) for row in case.rows]
    assert experts == [sum(int(whole.load[slot]) for slot in row) for row in case.rows]
    assert int(load.sum()) == 4 * case.unpadded


def test_asks_the_device_nothing() -> None:
    # A tensor of the meta device has no values: whatever needed one would raise.
    for tokens in (0, 7, 2048):
        case = Case([[0, 1]] * tokens, [[0, 1], [2]], 3, record=True, unpadded=tokens, turn=3)
        for call in (
            Call.of(case, torch.device("cpu")),
            Call.of(case, torch.device("meta")),
        ):
            assert call.run().shape == (tokens, 2)


@pytest.mark.parametrize("name", ["cuda"])
def test_is_captured_and_replayed(name: str) -> None:
    device = device_named(name)
    case = large(256)
    call = Call.of(case, device)
    call.run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            slots = call.run()
        call.load.zero_()
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, load = chosen(case)
    assert slots.tolist() == expected
    assert call.load.tolist() == load


# Inductor imports parts of torch that torch itself deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", DEVICES)
def test_compiles_whole_and_equals_eager(name: str, backend: str) -> None:
    device = device_named(name)
    compiled = torch.compile(map_and_record, fullgraph=True, dynamic=True, backend=backend)
    # One token is a trace of its own; the compiler proper takes half a minute for each.
    one = [1] if backend == "aot_eager" else []
    for tokens in (*one, 3, 40, GRID_CELLS // 64 + 8, 2000):
        case = large(tokens, seed=tokens)
        eager, fast = Call.of(case, device), Call.of(case, device)
        place = fast.load.data_ptr()
        assert torch.equal(eager.run(), fast.run(compiled))
        assert torch.equal(eager.load, fast.load)
        assert fast.load.data_ptr() == place


def test_one_trace_serves_all_sizes_of_a_way() -> None:
    traced = []

    def backend(graph: GraphModule, _: list[Tensor]) -> GraphModule:
        traced.append(graph)
        return graph

    torch.compiler.reset()  # the traces of tests before it count against the same limit
    compiled = torch.compile(map_and_record, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (5, 64, 512, GRID_CELLS // 64 + 1, GRID_CELLS // 64 + 500):
        Call.of(large(tokens), torch.device("cpu")).run(compiled)
    assert len(traced) <= 2
