"""What becomes of a command: an order, an errand, an answer, or a refusal that explains.

Owns which command is possible when, and the sentences. Every command is answered, by `Answer` or,
where the shell has to write a file first, by `Keep`. Must not know sockets, files nor permissions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from eplbd.core import commands as c
from eplbd.core.cycle import ASKING_MODES, Stage
from eplbd.core.drain import drained
from eplbd.core.errand import DRAIN, ROLLBACK, Errand, take_orders
from eplbd.core.fixed import misfit
from eplbd.core.group import Phase
from eplbd.core.orders import EVERY_LAYER, PINS_MAX, Hold, Orders
from eplbd.core.plan import align
from eplbd.errors import ConfigError, PlacementError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from eplbd.core.balancer import Balancer
    from eplbd.core.node import Node
    from eplbd.core.placement import Placement

EVERYONE = ""
"""Key of the orders that hold for every group, those to come included."""


def obey(node: Node, event: c.Commanded | c.OrdersRestored) -> None:
    """Do what is commanded, or say why not, into `node.out`."""
    if isinstance(event, c.OrdersRestored):
        node.orders = dict(event.orders)
        return
    lasting = _lasting(node.orders)
    try:
        done = _Command(node, event).run()
    except (ConfigError, PlacementError) as error:
        done = c.Answer(event.request, refused=str(error))
    node.drain_all()
    node.out.append(done)
    if _lasting(node.orders) != lasting:
        node.out.append(c.RememberOrders(_lasting(node.orders)))


def orders_of(orders: Mapping[str, Orders], group: str) -> Orders:
    """What is in force for a group: its own orders, and a hold that is everyone's."""
    own, every = orders.get(group, Orders()), orders.get(EVERYONE, Orders())
    return replace(own, hold=every.hold or own.hold)


def _lasting(orders: Mapping[str, Orders]) -> dict[str, Orders]:
    """What outlives the daemon: all but a pause."""
    kept = {
        group: replace(own, hold=own.hold if own.hold and own.hold.frozen else None)
        for group, own in orders.items()
    }
    return {group: own for group, own in kept.items() if own != Orders()}


class _Command:
    """One command on its way. Methods raise ConfigError with the reason where they refuse."""

    def __init__(self, node: Node, event: c.Commanded) -> None:
        self.node, self.event = node, event

    def run(self) -> c.Answer | c.Keep:
        done: str | c.Answer | c.Keep
        match self.event.command:
            case c.Pause() | c.Freeze() as command:
                done = self._hold(command)
            case c.Resume(group):
                done = self._resume(group)
            case c.Force(group):
                done = self._force(self._led(group))
            case c.GoTo() as command:
                done = self._go_to(command, self._led(command.group))
            case c.Pin() as command:
                done = self._pin(command, self._named(command.group))
            case c.Unpin() as command:
                done = self._unpin(command, self._named(command.group))
            case c.Drain(rank, group):
                done = self._drain(rank, self._led(group))
            case c.Undrain(rank, group):
                done = self._undrain(rank, self._named(group))
            case c.DumpHeat(group):
                done = self._dump(self._named(group))
            case c.Save(name, group):
                done = self._save(name, self._named(group))
        return c.Answer(self.event.request, told=done) if isinstance(done, str) else done

    # --- who is meant ---------------------------------------------------------------------------

    def _known(self, group: str) -> None:
        known = self.node.balancers
        if group in self.node.relays.groups:
            leader = self.node.relays.groups[group].leader.endpoint
            raise ConfigError(f"group {group} is led at {leader}: give the command on that node")
        if group not in known:
            names = ", ".join(sorted(known)) or "none, no worker has attached yet"
            raise ConfigError(f"this daemon serves no group {group!r}; it serves: {names}")

    def _named(self, group: str) -> Balancer:
        balancers = self.node.balancers
        if not group and not balancers:
            group = next(iter(self.node.relays.groups), "")
        if group:
            self._known(group)
            return balancers[group]
        if not balancers:
            raise ConfigError("no worker has attached to this daemon yet")
        if len(balancers) > 1:
            raise ConfigError(f"which group? this daemon serves {', '.join(sorted(balancers))}")
        return next(iter(balancers.values()))

    def _led(self, group: str) -> Balancer:
        """A group that may move now."""
        balancer = self._named(group)
        group, phase, hold = balancer.group.name, balancer.group.phase, balancer.orders.hold
        if self.node.stopping:
            raise ConfigError("the daemon stops")
        if hold and hold.frozen:
            raise ConfigError(
                f"group {group} is {hold}; pause lets orders through instead, resume the policy too"
            )
        if phase is Phase.FROZEN:
            raise ConfigError(
                f"group {group} froze by itself: {balancer.group.frozen}; serving goes on as it "
                "is, restart the engine"
            )
        if phase is Phase.GATHERING:
            missing = sorted(balancer.group.missing)
            raise ConfigError(f"group {group} is not complete: ranks {missing} are missing")
        if balancer.group.placement is None or balancer.cycle is None:
            raise ConfigError(f"group {group} is {phase}: its ranks have yet to say what they hold")
        return balancer

    def _order(self, group: str, orders: Orders) -> None:
        """Let these be a group's own orders, or everyone's, from now on."""
        self.node.orders[group] = orders
        for name, balancer in self.node.balancers.items():
            if group in (name, EVERYONE):
                take_orders(balancer, orders_of(self.node.orders, name))

    def _own(self, group: str) -> Orders:
        return self.node.orders.get(group, Orders())

    # --- hold and resume ------------------------------------------------------------------------

    def _hold(self, command: c.Pause | c.Freeze) -> str:
        group, frozen = command.group, isinstance(command, c.Freeze)
        if group:
            self._known(group)
        elif self.node.relays.groups and not self.node.balancers:
            self._named(group)
        held = orders_of(self.node.orders, group).hold
        if held and held.frozen == frozen:
            raise ConfigError(f"it is {held}; resume lifts that")
        if held and group and self._own(EVERYONE).hold:
            raise ConfigError(f"every group is {held}; {_name(command)} without naming one")
        hold = Hold(frozen, self.event.who, self.event.why)
        self._order(group, replace(self._own(group), hold=hold))
        whom = f"group {group}" if group else "every group"
        if frozen:
            return f"{whom} is frozen, over restarts: no placement changes until you resume"
        return f"{whom} is paused: the policy rests until you resume, or the daemon restarts"

    def _resume(self, group: str) -> str:
        if group:
            self._known(group)
            every = self._own(EVERYONE).hold
            if every:
                raise ConfigError(f"every group is {every}; resume without naming one")
        held = [
            name for name in ([group] if group else [*self.node.orders]) if self._own(name).hold
        ]
        suspended, policy = self.node.questions.breaker.suspended, self.node.settings.policy.name
        if not held and not suspended:
            self._explain_rest()
            raise ConfigError("nothing is paused or frozen by order, and the policy is asked")
        if suspended:
            self.node.trust()
        for name in held:
            self._order(name, replace(self._own(name), hold=None))
        again = f"; {policy}, which was suspended, is asked again" if suspended else ""
        return f"resumed{again}"

    def _explain_rest(self) -> None:
        """Refuse with what no order can lift, where there is such a thing."""
        for name, balancer in self.node.balancers.items():
            if balancer.group.frozen:
                raise ConfigError(
                    f"group {name} froze by itself, which no order lifts: {balancer.group.frozen}; "
                    "serving goes on as it is, restart the engine"
                )

    # --- moves ----------------------------------------------------------------------------------

    def _force(self, balancer: Balancer) -> str:
        cycle, balance = balancer.cycle, balancer.settings.balance
        assert cycle is not None
        assert balancer.ledger is not None
        policy = self.node.settings.policy.name
        if balancer.orders.hold:
            raise ConfigError(
                f"group {balancer.group.name} is {balancer.orders.hold}; resume first"
            )
        if balance.mode not in ASKING_MODES:
            raise ConfigError(f"balance.mode is {balance.mode}: no policy is asked in it")
        if self.node.questions.breaker.suspended:
            raise ConfigError(
                f"policy {policy} is suspended ({self.node.questions.suspended_for}); promote "
                "another, or resume to let it try again"
            )
        least = max(balance.min_steps, 2)
        steps = len(balancer.ledger.since(-1, balance.phase))
        if steps < least:
            raise ConfigError(f"there are {steps} steps of heat, a plan needs {least}; wait")
        cycle.forced = True
        if cycle.stage is Stage.MEASURING:
            cycle.deadline = balancer.now
        if cycle.stage in (Stage.RESTING, Stage.MEASURING):
            return f"policy {policy} is asked now; what it answers is taken whatever it gains"
        return f"policy {policy} is asked once the rebalance under way ({cycle.stage}) is over"

    def _go_to(self, command: c.GoTo, balancer: Balancer) -> str:
        current, name = _placement(balancer), command.name
        target = command.placement
        if target is None and command.author == ROLLBACK:
            target, name = balancer.before or command.spare, "the placement before"
        if target is None:
            raise ConfigError(
                "nothing was rebalanced since this daemon began, and nothing is kept from before; "
                "name a saved placement"
            )
        reason = misfit(target, current) or balancer.orders.breach(current, target)
        if reason:
            raise ConfigError(f"{name}: {reason}")
        moves = _moves(current, target)
        balancer.errands.order(Errand(command.author, target))
        own = self._own(balancer.group.name)
        told = f"goes to {name} ({moves} moves)"
        if not balancer.orders.hold:
            why = f"it went to {name} by order: {self.event.why}"
            own = replace(own, hold=Hold(frozen=False, who=self.event.who, why=why))
            told += "; the policy is paused, so that it stays there until you resume"
        self._order(balancer.group.name, own)
        return told

    # --- pins -----------------------------------------------------------------------------------

    def _pin(self, command: c.Pin, balancer: Balancer) -> str:
        shape, expert, layer = balancer.group.shape, command.expert, command.layer
        _within("expert", expert, shape.experts)
        if layer is not None:
            _within("layer", layer, shape.layers)
        own = self._own(balancer.group.name)
        if {(EVERY_LAYER, expert), (layer, expert)} & own.pins:
            raise ConfigError(f"expert {expert} is pinned there already")
        if len(own.pins) >= PINS_MAX:
            raise ConfigError(f"{PINS_MAX} pins are the most; save a placement and load it instead")
        pin = (EVERY_LAYER if layer is None else layer, expert)
        self._order(balancer.group.name, replace(own, pins=own.pins | {pin}))
        where = "in every layer" if layer is None else f"in layer {layer}"
        return f"expert {expert} stays on its ranks {where}, over restarts, until you unpin it"

    def _unpin(self, command: c.Unpin, balancer: Balancer) -> str:
        expert, layer = command.expert, command.layer
        own = self._own(balancer.group.name)
        of_expert = frozenset(pin for pin in own.pins if pin[1] == expert)
        gone = of_expert if layer is None else of_expert & {(layer, expert)}
        if not gone and (EVERY_LAYER, expert) in of_expert:
            raise ConfigError(f"expert {expert} is pinned in every layer; unpin it without one")
        if not gone:
            pinned = sorted({pin[1] for pin in own.pins}) or "none"
            raise ConfigError(f"expert {expert} is not pinned there; pinned experts: {pinned}")
        self._order(balancer.group.name, replace(own, pins=own.pins - gone))
        return f"expert {expert} may move again"

    # --- drains ---------------------------------------------------------------------------------

    def _drain(self, rank: int, balancer: Balancer) -> str:
        _within("rank", rank, balancer.group.shape.ranks)
        own = self._own(balancer.group.name)
        if rank in own.drained:
            raise ConfigError(f"rank {rank} is drained already")
        orders = replace(own, drained=own.drained | {rank})
        current = _placement(balancer)
        weighted = balancer.group.shape.weighted
        target = drained(current, orders, _heat(balancer), weighted=weighted)
        moves = _moves(current, target)
        balancer.errands.order(Errand(DRAIN))
        self._order(balancer.group.name, orders)
        return (
            f"rank {rank} is drained ({moves} moves), over restarts: no expert has its only "
            "replica there, and no policy is shown it until you undrain it"
        )

    def _undrain(self, rank: int, balancer: Balancer) -> str:
        own = self._own(balancer.group.name)
        if rank not in own.drained:
            raise ConfigError(
                f"rank {rank} is not drained; drained: {sorted(own.drained) or 'none'}"
            )
        self._order(balancer.group.name, replace(own, drained=own.drained - {rank}))
        return f"rank {rank} is shown to the policy again"

    # --- looking --------------------------------------------------------------------------------

    def _save(self, name: str, balancer: Balancer) -> c.Keep:
        return c.Keep(balancer.group.name, name, _placement(balancer), self.event.request)

    def _dump(self, balancer: Balancer) -> c.Answer:
        ledger, phase = balancer.ledger, balancer.settings.balance.phase
        steps = ledger.since(-1, phase) if ledger else []
        if ledger is None or not steps:
            raise ConfigError("there is no heat in the window yet")
        tokens = sum(step.tokens for step in steps)
        routed = sum(int(step.heat[0].sum(dtype=np.int64)) for step in steps)
        dump = c.HeatDump(
            group=balancer.group.name,
            heat=ledger.heat(phase),
            topk=round(routed / tokens) if tokens else 0,
            first_forward=steps[0].forward,
            last_forward=steps[-1].forward,
        )
        return c.Answer(self.event.request, told=f"{len(steps)} steps", dump=dump)


def _name(command: c.Command) -> str:
    """As the operator knows it."""
    return type(command).__name__.lower()


def _within(what: str, number: int, count: int) -> None:
    if not 0 <= number < count:
        raise ConfigError(f"{what} is {number}, expected 0 to {count - 1}")


def _placement(balancer: Balancer) -> Placement:
    if balancer.group.placement is None:
        raise ConfigError(f"group {balancer.group.name} has yet to say what its ranks hold")
    return balancer.group.placement


def _heat(balancer: Balancer) -> NDArray[np.int64]:
    assert balancer.ledger is not None
    return balancer.ledger.heat(balancer.settings.balance.phase).total


def _moves(current: Placement, target: Placement) -> int:
    """Slots that are written on the way."""
    return int(np.count_nonzero(align(current, target).slots != current.slots))
