"""The picture on a terminal: parts that fill it, keys that ask and then command.

Owns where a part stands, what a key does and when the picture is drawn anew. What is told comes
from a follower, what is commanded goes to whoever was given: nothing is decided here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import ClassVar, Protocol, TypeAlias

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Footer

from eplbd.errors import ConfigError, EplbdError
from eplbd.top import panels
from eplbd.top.colours import drawn
from eplbd.top.heat import LEGEND, heat_lines
from eplbd.top.history import History
from eplbd.top.question import Question, Reply
from eplbd.top.wording import Line, printable
from eplbd.wire.stream import Group, Told

SILENCE_S = 3.0
"""Beyond the time between snapshots; then the picture is marked as old."""

Draw: TypeAlias = Callable[[int, int], list[Line]]


class Follows(Protocol):
    """Where events come from; see `eplbd.runtime.follow`."""

    async def catch_up(self) -> list[Told]:
        """Everything so far."""
        ...

    async def next(self) -> list[Told]:
        """What comes."""
        ...


Commands: TypeAlias = Callable[[str, str, Reply], Awaitable[str]]
"""A verb, a group and what the operator replied; returns what was done, raises what refuses it."""

WARNINGS = {
    "pause": "Pause {0}: no rebalance is begun until it is resumed",
    "resume": "Resume {0}",
    "freeze": "Freeze {0}: its placement stays as it is, over restarts of the daemon too",
    "rollback": "Roll {0} back to the placement before its last rebalance",
    "promote": "Put another policy in charge of {0}",
}


class Part(Widget):
    """One part of the picture."""

    def __init__(self, name: str, draw: Draw) -> None:
        super().__init__(id=name, classes="part")
        self._draw = draw

    def render(self) -> Text:
        """Lines for the room there is."""
        return drawn(self._draw(self.size.width, self.size.height))


class Top(App[str]):
    """What `eplbd top` shows; ends with why it could not go on, if that is it."""

    CSS_PATH = "top.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("p", "command('pause')", "Pause"),
        ("r", "command('resume')", "Resume"),
        ("f", "command('freeze')", "Freeze"),
        ("m", "command('promote')", "Promote"),
        ("b", "command('rollback')", "Roll back"),
        ("g", "next_group", "Group"),
    ]

    def __init__(self, follower: Follows, commands: Commands, *, interval_s: float = 1.0) -> None:
        super().__init__()
        self.history = History()
        self._follower, self._commands = follower, commands
        self._patience_s = interval_s + SILENCE_S
        self._index = 0
        self._heard_at = time.monotonic()

    def compose(self) -> ComposeResult:
        """Head, parts, keys."""
        head = Part("header", self._header)
        head.remove_class("part")
        yield head
        with Container(id="parts"):
            yield Part("heat", self._heat)
            yield Part("ranks", self._of_group(panels.ranks_lines))
            yield Part("epochs", self._epochs)
            yield Part("policies", self._policies)
            with Vertical():
                yield Part("budget", self._of_group(panels.budget_lines))
                yield Part("notes", lambda w, h: panels.notes_lines(self.history, w, h))
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to listen; once a second the age of what was heard changes."""
        self.run_worker(self._listen(), exclusive=True)
        self.set_interval(1.0, self.query_one("#header", Part).refresh)
        self.draw()

    async def _listen(self) -> None:
        heard = self._follower.catch_up
        while True:
            try:
                self.history.take(await heard())
            except ConfigError:
                if self.history.snapshot is None:
                    raise
                # Gone for now: what is shown grows old, and the next snapshot asks again.
            except EplbdError as error:
                self.exit(str(error), return_code=1)
                return
            else:
                self._heard_at = time.monotonic()
            heard = self._follower.next
            self.draw()

    # --- drawing --------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw everything anew, titles too."""
        group = self.group
        titles = {
            "heat": f"load of ranks, mean 1.0:  {LEGEND}",
            "ranks": panels.ranks_title(group) if group else "ranks",
            "epochs": panels.epochs_title(group) if group else "epochs",
            "policies": "policies (vs: before, or the group)",
            "budget": "budget",
            "notes": panels.notes_title(self.history.snapshot),
        }
        for part in self.query(Part):
            title = titles.get(part.id or "")
            if part.border_title != title:
                part.border_title = title
            part.refresh()

    @property
    def group(self) -> Group | None:
        """The one that is shown."""
        return self.history.group(self._index)

    def _header(self, width: int, _height: int) -> list[Line]:
        silence_s = time.monotonic() - self._heard_at
        shown_s = silence_s if silence_s > self._patience_s else 0.0
        return panels.header_lines(self.history, self.group, shown_s, width)

    def _heat(self, width: int, height: int) -> list[Line]:
        group = self.group
        return heat_lines(group, self.history.story(group.name), width, height) if group else []

    def _of_group(self, lines: Callable[[Group, int, int], list[Line]]) -> Draw:
        return lambda width, height: lines(self.group, width, height) if self.group else []

    def _epochs(self, width: int, height: int) -> list[Line]:
        group = self.group
        if group is None:
            return []
        return panels.epochs_lines(group, self.history.story(group.name), width, height)

    def _policies(self, width: int, height: int) -> list[Line]:
        group, snapshot = self.group, self.history.snapshot
        if group is None or snapshot is None:
            return []
        story = self.history.story(group.name)
        return panels.policies_lines(snapshot, group, story, width, height)

    # --- keys -----------------------------------------------------------------------------------

    def action_next_group(self) -> None:
        """Show the next group."""
        self._index += 1
        self.draw()

    def action_command(self, verb: str) -> None:
        """Ask for the reason, then command."""
        group = self.group
        if group is None:
            self.notify("there is no group to command", severity="warning", markup=False)
            return
        choices = [shadow.name for shadow in group.shadows] if verb == "promote" else []
        if verb == "promote" and not choices:
            self.notify("no policy is beside the one in charge: see policy.shadow", markup=False)
            return

        def replied(reply: Reply | None) -> None:
            if reply is not None:
                self.run_worker(self._command(verb, group.name, reply))

        text = WARNINGS[verb].format(printable(group.name))
        self.push_screen(Question(text, choices), replied)

    async def _command(self, verb: str, group: str, reply: Reply) -> None:
        try:
            told = await self._commands(verb, group, reply)
        except EplbdError as error:
            self.notify(printable(str(error)), severity="error", markup=False, timeout=15)
        else:
            self.notify(printable(told), markup=False)
