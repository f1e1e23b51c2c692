"""The operator's door: commands in, one reply and one line in the log for each.

Owns what a command needs of the outside before the core sees it (a saved placement, a policy that
starts) and after (a file that is written before it is said to be). Whether anybody may come in is
the socket's permissions'; who it was and why, as stated, is the record's. Must not know what a
command does: `core.obedience` decides, and says it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from eplbd.config import Config, Loaded, adjusted, control_endpoint
from eplbd.core import commands as c
from eplbd.core.errand import LOAD, ROLLBACK
from eplbd.core.events import Note
from eplbd.core.orders import PREVIOUS
from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import ConfigError, EplbdError, RemoteProtocolError
from eplbd.runtime.link import Link, Packet, open_link
from eplbd.runtime.saved import Saved, write_orders
from eplbd.wire import control as wire
from eplbd.wire.limits import MAX_MESSAGE_BYTES

OPEN_MAX = 64
"""Commands whose answer is under way; operators are few."""

WAITING_MAX = 256
"""Beyond it, what nobody asked to be kept is not: the disk has stood still for as many cycles."""

HEAT_BYTES = MAX_MESSAGE_BYTES - (1 << 16)
"""Of one reply; a longer window is handed out as its newest steps."""

Adjust: TypeAlias = Callable[[Callable[[Loaded], Loaded]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Seams:
    """What the door is given of the daemon.

    take: steps the core through a command. adjust: changes the configuration in force; raises
    ConfigError or PolicyError. look: how everything stands, as JSON. groups: that are served. say:
    writes a line.
    """

    take: Callable[[c.Commanded], None]
    adjust: Adjust
    look: Callable[[], bytes]
    groups: Callable[[], list[str]]
    say: Callable[[Note], None]


@dataclass(frozen=True, slots=True)
class _Open:
    """A request that has no reply yet."""

    peer: bytes
    number: int
    caller: wire.Caller
    request: wire.Request


Written: TypeAlias = c.Answer | c.Keep | c.RememberOrders


class Control:
    """Takes requests, and effects that answer them. Made by `open_control`."""

    def __init__(
        self,
        link: Link,
        state: Path,
        streams: tuple[MemoryObjectSendStream[Written], MemoryObjectReceiveStream[Written]],
    ) -> None:
        self._link, self._state = link, state
        self.saved = Saved(state)
        self._open: dict[int, _Open] = {}
        self._number = 0
        self._write, self._to_write = streams
        self._waiting = 0
        self._quiet = anyio.Event()
        self._unkept = ""
        """Why the newest orders are not on the disk."""

    def take(self, effect: Written) -> None:
        """Answer what is to be answered, once what has to be on the disk is there; never waits."""
        if isinstance(effect, c.Keep) and not effect.request and self._waiting >= WAITING_MAX:
            return
        self._waiting += 1
        self._write.send_nowait(effect)

    async def run(self, seams: Seams) -> None:
        """Serve until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._settle, seams)
            while True:
                for packet in await self._link.receive():
                    self._received(packet, seams, tasks)
                await anyio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """Return once nothing waits to be written, while `run` runs."""
        while self._waiting:
            self._quiet = anyio.Event()
            await self._quiet.wait()

    # --- requests -------------------------------------------------------------------------------

    def _received(self, packet: Packet, seams: Seams, tasks: TaskGroup) -> None:
        peer, frames = packet
        try:
            caller, number, request = wire.asked(frames, MAX_MESSAGE_BYTES)
        except RemoteProtocolError as error:
            self._send(peer, 0, wire.Refused(f"this daemon does not understand that: {error}"))
            return
        if isinstance(request, wire.Status):
            document = np.frombuffer(seams.look(), dtype=np.uint8)
            self._send(peer, number, wire.Stated(document))
            return
        if len(self._open) >= OPEN_MAX:
            self._send(peer, number, wire.Refused(f"{OPEN_MAX} commands are under way; try again"))
            return
        self._number += 1
        self._open[self._number] = _Open(peer, number, caller, request)
        match request:
            case wire.Rollback() | wire.Load() | wire.Place():
                tasks.start_soon(self._go, self._number, request, seams)
            case wire.Budget() | wire.Promote():
                tasks.start_soon(self._adjust, self._number, request, seams)
            case c.Save(name) if fault := wire.saved_name(name):
                self._reply(self._number, wire.Refused(fault), seams)
            case _:
                self._command(self._number, request, seams)

    def _command(self, number: int, command: c.Command, seams: Seams) -> None:
        caller = self._open[number].caller
        seams.take(c.Commanded(number, command, caller.who, caller.why))

    async def _go(
        self, number: int, request: wire.Rollback | wire.Load | wire.Place, seams: Seams
    ) -> None:
        """Find the placement, and have the core go there."""
        author = ROLLBACK if isinstance(request, wire.Rollback) else LOAD
        try:
            placement, spare = await self._found(request, seams)
        except EplbdError as error:
            self._reply(number, wire.Refused(str(error)), seams)
            return
        name = request.name or "the placement before"
        self._command(number, c.GoTo(request.group, author, name, placement, spare), seams)

    async def _found(
        self, request: wire.Rollback | wire.Load | wire.Place, seams: Seams
    ) -> tuple[Placement | None, Placement | None]:
        """Where to go, and what to take where the core knows nothing of before."""
        if isinstance(request, wire.Place):
            return _checked(request), None
        served = seams.groups()
        group = request.group or (served[0] if len(served) == 1 else "")
        if not group:
            return None, None  # the core says what is wrong with that
        load = self.saved.load
        if request.name:
            return await anyio.to_thread.run_sync(load, group, request.name), None
        if PREVIOUS not in await anyio.to_thread.run_sync(self.saved.names, group):
            return None, None
        return None, await anyio.to_thread.run_sync(load, group, PREVIOUS)

    async def _adjust(self, number: int, request: wire.Budget | wire.Promote, seams: Seams) -> None:
        told = ""

        def change(loaded: Loaded) -> Loaded:
            nonlocal told
            values = (
                _budget(request)
                if isinstance(request, wire.Budget)
                else _promoted(request, loaded.config)
            )
            told = ", ".join(f"{key} = {value}" for key, value in values.items() if _plain(value))
            return adjusted(loaded, values, "eplbd ctl")

        try:
            await seams.adjust(change)
        except EplbdError as error:
            self._reply(number, wire.Refused(str(error)), seams)
        else:
            until = "until the configuration is read again; to keep it, write it in eplbd.toml"
            self._reply(number, wire.Done(f"{told}: {until}"), seams)

    # --- replies --------------------------------------------------------------------------------

    async def _settle(self, seams: Seams) -> None:
        """Write what must be written, then answer, one after the other."""
        async for effect in self._to_write:
            match effect:
                case c.RememberOrders(orders):
                    self._unkept = ""
                    try:
                        await anyio.to_thread.run_sync(write_orders, self._state, orders)
                    except OSError as error:
                        self._unkept = f"; but not over a restart: {error}"
                case c.Keep():
                    await self._keep(effect, seams)
                case c.Answer():
                    self._answer(effect, seams)
            self._waiting -= 1
            self._quiet.set()

    async def _keep(self, keep: c.Keep, seams: Seams) -> None:
        reply: wire.Reply
        try:
            path = await anyio.to_thread.run_sync(self.saved.write, keep)
        except EplbdError as error:
            reply = wire.Refused(str(error))
            if not keep.request:
                seams.say(Note("warning", "placement not kept", {"reason": str(error)}))
        else:
            reply = wire.Done(f"kept as {keep.name}, in {path}")
        if keep.request:
            self._reply(keep.request, reply, seams)

    def _answer(self, answer: c.Answer, seams: Seams) -> None:
        reply: wire.Reply = wire.Done(answer.told + self._unkept)
        if answer.refused:
            reply = wire.Refused(answer.refused)
        elif answer.dump is not None:
            reply = _dumped(answer.dump)
        self._reply(answer.request, reply, seams)

    def _reply(self, number: int, reply: wire.Reply, seams: Seams) -> None:
        """Say it to the caller and to the record."""
        asked = self._open.pop(number)
        refused = isinstance(reply, wire.Refused)
        fields = {
            "command": wire.REQUEST.tag(asked.request),
            **_arguments(asked.request),
            "who": asked.caller.who,
            "why": asked.caller.why,
            "result": "refused" if refused else "done",
            "detail": _words(reply),
        }
        seams.say(Note("warning" if refused else "info", "command", fields))
        self._send(asked.peer, asked.number, reply)

    def _send(self, peer: bytes, number: int, reply: wire.Reply) -> None:
        # A caller that has left, or reads nothing, is none of ours to wait for.
        self._link.send(peer, wire.REPLY.encode(reply, number))


def _checked(request: wire.Place) -> Placement:
    """Raises PlacementError or ConfigError where it is none."""
    layers, ranks, per_rank = request.slots.shape
    return validate(
        request.slots,
        experts=request.experts,
        topology=Topology.single_node(ranks, per_rank),
        layers=layers,
        allow_duplicates=True,
        shares=request.shares,
    )


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _budget(request: wire.Budget) -> dict[str, object]:
    given = {
        "balance.max_moves": request.max_moves,
        "transfer.inflation_ceiling": request.inflation_ceiling,
    }
    values: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if not values:
        raise ConfigError("a budget of what? name max_moves, inflation_ceiling or both")
    return values


def _promoted(request: wire.Promote, config: Config) -> dict[str, object]:
    """A shadow brings its options along; anybody else begins with its own defaults."""
    name, policy = request.policy, config.policy
    if name == policy.name:
        raise ConfigError(f"{name} is in charge already; resume if it is suspended")
    others = {shadow: given for shadow, given in policy.shadow_options.items() if shadow != name}
    return {
        "policy.name": name,
        "policy.options": policy.shadow_options.get(name, {}),
        "policy.shadow": [shadow for shadow in policy.shadow if shadow != name],
        "policy.shadow_options": others,
    }


def _arguments(request: wire.Request) -> dict[str, object]:
    """What was asked for, as far as it is a name or a number."""
    given = msgspec.to_builtins(request, enc_hook=lambda _: None)
    return {name: value for name, value in given.items() if value is not None}


def _words(reply: wire.Reply) -> str:
    match reply:
        case wire.Done(told):
            return told
        case wire.Refused(reason):
            return reason
        case wire.Dumped(heat=heat):
            return f"{len(heat)} steps of heat"
        case _:
            return ""


def _dumped(dump: c.HeatDump) -> wire.Dumped:
    steps = dump.heat.steps
    most = max(1, HEAT_BYTES // max(1, steps[0].nbytes))
    return wire.Dumped(
        group=dump.group,
        phase=dump.heat.phase,
        topk=dump.topk,
        first_forward=dump.first_forward,
        last_forward=dump.last_forward,
        heat=steps[-most:],
    )


@contextlib.contextmanager
def open_control(config: Config) -> Iterator[Control]:
    """Bind the socket of `[control]` and hold it while the block runs.

    Raises:
        ConfigError: Another daemon serves it, something else is in its place, or it cannot be
            bound.
    """
    write, to_write = anyio.create_memory_object_stream[Written](math.inf)
    with (
        write,
        to_write,
        open_link(
            control_endpoint(config),
            mode=int(config.control.socket_mode, 8),
            max_message_bytes=MAX_MESSAGE_BYTES,
            key="control.socket",
        ) as link,
    ):
        yield Control(link, Path(config.daemon.state_dir), (write, to_write))
