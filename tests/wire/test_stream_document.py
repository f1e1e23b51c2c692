"""PROTOCOL.md lists what the event stream tells: made from the sources, and compared.

`EPLBD_UPDATE=1` writes it anew.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import typing
from pathlib import Path
from typing import Any

from eplbd.core.events import CycleEnded, EpochEnded, ShadowScored
from eplbd.core.views import (
    BudgetOverview,
    EpochOverview,
    GroupOverview,
    RankOverview,
    ShadowOverview,
)
from eplbd.runtime.stream import KEPT_BYTES
from eplbd.wire import limits, stream

DOCUMENT = Path(limits.__file__).with_name("PROTOCOL.md")
BEGIN, END = "<!-- stream: begin -->\n", "<!-- stream: end -->\n"

PAYLOADS = (stream.Snapshot, stream.Epoch, stream.Cycle, stream.Shadow, stream.Noted)
PARTS = (
    stream.Group, stream.Alarm, RankOverview, EpochOverview, BudgetOverview, ShadowOverview,
    EpochEnded, CycleEnded, ShadowScored,
)  # fmt: skip


def _said_of(kind: type) -> dict[str, str]:
    """What stands below each field in the source."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    said: dict[str, str] = {}
    for field, after in itertools.pairwise(body.body):
        match field, after:
            case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                said[name] = " ".join(text.split())
    return said


def _fields(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a struct or a dataclass
    names: tuple[str, ...] = getattr(kind, "__struct_fields__", ()) or kind.__match_args__
    return names


def _named(hint: Any) -> str:  # noqa: ANN401 - whatever an annotation may be
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple):
        return f"list of {_named(arguments[0])}"
    if origin is dict:
        return f"map to {_named(arguments[1])}"
    if arguments:
        others = [each for each in arguments if each is not type(None)]
        return f"{_named(others[0])} or nil"
    names = {float: "float", int: "int", str: "str", bool: "bool", object: "anything"}
    known = names.get(hint)
    if known is None:
        known = f"`{hint.__name__}`" if hint in PARTS else "str"
    return known


def _listed() -> str:
    lines: list[str] = []
    for kind in (*PAYLOADS, *PARTS):
        title = kind.__struct_config__.tag if kind in PAYLOADS else kind.__name__
        about = (inspect.getdoc(kind) or "").partition("\n\n")[0]
        lines += ["", f"**`{title}`** {' '.join(about.split())}", ""]
        said = _said_of(stream.Told) | _said_of(kind)
        if kind is stream.Group:
            said = _said_of(GroupOverview) | said
        hints = typing.get_type_hints(kind)
        for name in _fields(kind):
            note = f": {said[name]}" if name in said else ""
            lines.append(f"- `{name}` ({_named(hints[name])}){note}")
    return "\n".join(lines) + "\n\n"


def test_the_list_of_events_is_the_one_of_the_source() -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    listed, after = rest.split(END)
    if os.environ.get("EPLBD_UPDATE"):
        DOCUMENT.write_text(f"{before}{BEGIN}{_listed()}{END}{after}")
        listed = _listed()
    assert listed == _listed()


def test_the_figures_are_those_of_the_source() -> None:
    text = DOCUMENT.read_text()
    assert f"at most {KEPT_BYTES >> 20} MiB, are kept" in text
    assert stream.END == b"\xff" * 8
