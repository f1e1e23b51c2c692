"""The page that status prints: complete, and no wider than a terminal."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from eplbd.core import commands as c
from eplbd.core.cluster import Led
from eplbd.core.events import Tick
from eplbd.core.orders import Hold, Orders
from eplbd.core.overview import overview
from eplbd.ctl.standing import lines
from eplbd.runtime.status import Document, document, read_document
from eplbd.wire.stream import snapshot
from tests.core import test_relays as relaying
from tests.sim.commanded import CALM, WIDE, Commanded, led
from tests.sim.quick import QUICK

WIDTH = 80


def seen(world: Commanded) -> Document:
    assert world.node is not None
    shot = snapshot(overview(world.node), at_s=0.0, up_s=7200.0, version="1.2", host="here")
    return read_document(document(shot, world.node.orders))


def page(world: Commanded) -> list[str]:
    return list(lines(seen(world)))


def test_a_daemon_without_workers() -> None:
    world = Commanded(shape=WIDE)
    world.told(c.Pause())
    first, *rest = page(world)
    assert first == "eplbd 1.2 on here, up 2.0 h, policy incremental"
    assert rest == ["no worker has attached", "  paused   by alice: a test"]


def test_a_group_that_is_led_elsewhere_names_the_place() -> None:
    made = relaying.node()
    relaying.step(made, relaying.local(1, relaying.THERE), Tick(1.0))

    def told() -> list[str]:
        shot = snapshot(overview(made), at_s=0.0, up_s=5.0, version="1.2", host="here")
        return list(lines(read_document(document(shot, made.orders))))

    where = f"group g: led by the daemon at {relaying.THERE.endpoint}; status and orders are there"
    before = told()
    assert [where, "  ranks    1 of this node, relayed"] == before[2:4]
    assert before[4] == "  leader   LOST: the leader was not heard yet"
    relaying.step(made, Led(relaying.THERE), Tick(1.5))
    assert told()[4:] == ["  leader   heard 0 s ago", "no group is led here"]


def test_how_much_of_the_bubbles_the_last_epoch_used_is_there_once_it_is_known() -> None:
    world = led()
    assert not any("bubbles" in line for line in page(world))
    world.transport.took = dict.fromkeys(range(4), (2.0, 0.5))
    world.until(lambda: any("bubbles  25% used by the last epoch" in line for line in page(world)))
    assert all(len(line) <= WIDTH for line in page(world))


def test_what_plans_take_links_and_ranks_for_is_there_where_it_matters() -> None:
    plain = led()
    plain.until(lambda: "  cycles   none" not in page(plain))
    assert not any(line.startswith(("  links", "  speed")) for line in page(plain))
    balance = replace(QUICK.balance, rank_speed=("1=0.5", "2=1.25"))
    transfer = replace(QUICK.transfer, node_bytes_per_s=2.5e9)
    world = led(settings=replace(QUICK, balance=balance, transfer=transfer))
    world.until(lambda: "  speed    1 x0.5, 2 x1.25; others x1" in page(world))
    assert "  links    2.5 GB/s in a node, each way" in page(world)
    assert all(len(line) <= WIDTH for line in page(world))


def test_everything_that_is_ordered_is_there() -> None:
    world = led(settings=CALM)
    world.told(c.Pin(3))
    world.told(c.Pin(2, 1))
    world.told(c.Drain(1))
    world.told(c.Freeze())
    text = "\n".join(page(world))
    for words in (
        "group sim: ready, ",
        "4 of 4 attached; 2 layers, 5 experts, 3 slots each",
        "PAR ",
        "drained  rank 1",
        "expert 3 in every layer",
        "expert 2 in layer 1",
        "frozen   by alice: a test",
        "any number of moves",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_rank_in_trouble_is_named() -> None:
    world = led(settings=CALM)
    assert world.node is not None
    world.node.balancers["sim"].group.lost(2, "cut off")
    world.node.balancers["sim"].group.freeze("ranks hold different maps")
    text = "\n".join(page(world))
    assert "3 of 4 attached" in text
    assert "lost: 2" in text
    assert "by itself: ranks hold different maps" in text


@pytest.mark.parametrize("ranks", [16, 1024])
def test_many_ranks_are_counted(ranks: int) -> None:
    shown = seen(led(settings=CALM))
    (group,) = shown.snapshot.groups
    lost = tuple(replace(group.ranks[0], rank=rank, state="lost") for rank in range(ranks))  # type: ignore[arg-type]
    shot = msgspec.structs.replace(
        shown.snapshot, groups=(msgspec.structs.replace(group, ranks=lost),)
    )
    page = list(lines(msgspec.structs.replace(shown, snapshot=shot)))
    assert any(f"and {ranks - 7} more" in line for line in page)
    assert max(map(len, page)) <= WIDTH


def test_orders_of_a_group_that_is_not_there_are_in_the_document() -> None:
    world = led(settings=CALM)
    assert world.node is not None
    world.node.orders["gone"] = Orders(Hold(frozen=True, who="bob", why="moved"))
    orders = {order.group: order for order in seen(world).orders}
    assert set(orders) == {"", "sim", "gone"}
    hold = orders["gone"].hold
    assert hold is not None
    assert (hold.who, hold.frozen) == ("bob", True)
