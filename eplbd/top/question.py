"""What is asked before a key changes anything: which, and why.

Owns that dialog. The reason goes into the daemon's records; nothing is sent without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList


@dataclass(frozen=True, slots=True)
class Reply:
    """What the operator wants: one of the choices, if there were any, and the reason."""

    choice: str
    why: str


class Question(ModalScreen[Reply | None]):
    """Asks for a reason, and for one of `choices` where there are any; escape takes it back."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Cancel")]

    def __init__(self, text: str, choices: Sequence[str] = ()) -> None:
        super().__init__()
        self._text, self._choices = text, choices

    def compose(self) -> ComposeResult:
        """The question above, the reason below."""
        with Vertical(id="question"):
            yield Label(self._text)
            if self._choices:
                yield OptionList(*self._choices, compact=True)
            yield Input(placeholder="why? it goes into the daemon's records", compact=True)
            yield Label("enter: do it   escape: leave it", classes="hint")

    def on_mount(self) -> None:
        """Begin where something is to be chosen."""
        if self._choices:
            options = self.query_one(OptionList)
            options.highlighted = 0
            options.focus()
        else:
            self.query_one(Input).focus()

    def on_option_list_option_selected(self) -> None:
        """Chosen: now the reason."""
        self.query_one(Input).focus()

    def on_input_submitted(self, said: Input.Submitted) -> None:
        """Answer, or ask on while there is no reason."""
        why = said.value.strip()
        if not why:
            self.query_one(".hint", Label).update("a reason is needed   escape: leave it")
            return
        choice = ""
        if self._choices:
            place = self.query_one(OptionList).highlighted or 0
            choice = self._choices[place]
        self.dismiss(Reply(choice, why))
