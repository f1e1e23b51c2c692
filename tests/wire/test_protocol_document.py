"""PROTOCOL.md lists the messages that there are: the list is made from their source, and compared.

`EPLBD_UPDATE=1` writes it anew.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from eplbd.core import cluster, messages
from eplbd.core.contact import SEEK_S
from eplbd.core.settings import EpochSettings, SessionSettings
from eplbd.wire import limits
from eplbd.wire.bundle import FROM_RELAY
from eplbd.wire.messages import FROM_AGENT, FROM_LEADER

RELAYS_OWN = {tag: kind for tag, kind in FROM_RELAY.items() if tag not in FROM_AGENT}
DOCUMENT = Path(limits.__file__).with_name("PROTOCOL.md")
BEGIN, END = "<!-- messages: begin -->\n", "<!-- messages: end -->\n"


def _said_of(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Each assigned name with the string that stands below it, if any."""
    for statement, after in zip(body, [*body[1:], None], strict=True):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        target = statement.target if isinstance(statement, ast.AnnAssign) else target
        if isinstance(target, ast.Name):
            said = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                said = str(after.value.value)
            yield target.id, " ".join(said.split())


def _classes() -> dict[str, tuple[str, dict[str, str]]]:
    """Class to its docstring and to what is said of each of its names."""
    return {
        node.name: (" ".join((ast.get_docstring(node) or "").split()), dict(_said_of(node.body)))
        for module in (messages, cluster)
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef)
    }


def _kind(field: Field[Any]) -> str:
    if "dtype" in field.metadata:
        optional = "" if field.default is MISSING else ", may be left out"
        kind = field.metadata["dtype"] or "integers"
        return f"{field.metadata['ndim']}-dimensional array of {kind}{optional}"
    kinds = {"int": "count", "float": "seconds", "str": "name", "bool": "flag"}
    hint = str(field.type)
    kind = "text" if field.name == "reason" else kinds.get(hint, hint.lower())
    return kind if field.default is MISSING else f"{kind}, {str(field.default).lower()}"


def _table() -> str:
    classes = _classes()
    lines: list[str] = []
    tables: dict[str, Mapping[str, type[Any]]] = {
        "From an agent": FROM_AGENT,
        "From a relay": RELAYS_OWN,
        "From the leader": FROM_LEADER,
    }
    for title, table in tables.items():
        lines += [f"### {title}", ""]
        for tag, kind in table.items():
            about, said = classes[kind.__name__]
            lines += [f"**`{tag}`** {about}", ""]
            for field in fields(kind):
                note = f": {said[field.name]}" if said[field.name] else ""
                lines.append(f"- `{field.name}` ({_kind(field)}){note}")
            lines += [""] if fields(kind) else []
    lines += ["### Enumerated values", ""]
    for name, kind in vars(messages).items():
        if isinstance(kind, type) and issubclass(kind, Enum):
            about, said = classes[name]
            lines += [f"**{name.lower()}** {about}", ""]
            lines += [
                f"- `{member.value}`{': ' if said[member.name] else ''}{said[member.name]}"
                for member in kind
            ]
            lines.append("")
    return "\n".join(lines) + "\n"


def test_the_list_of_messages_is_the_one_of_the_source() -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    listed, after = rest.split(END)
    table = "\n" + _table()
    if os.environ.get("EPLBD_UPDATE"):
        DOCUMENT.write_text(f"{before}{BEGIN}{table}{END}{after}")
        listed = table
    assert listed == table


def test_every_message_has_its_place_in_the_grammar() -> None:
    grammar = DOCUMENT.read_text().split("## 5. Grammar")[1].split("## 6.")[0]
    said = set(re.findall(r"\b([AL]):([a-z]+)", grammar))
    said -= {("A", "``"), ("L", "``")}
    expected = {("A", tag) for tag in FROM_AGENT} | {("L", tag) for tag in FROM_LEADER}
    assert said == expected


def test_the_figures_are_those_of_the_source() -> None:
    text = DOCUMENT.read_text()
    assert f"# EPLBD/{messages.WIRE_VERSION}:" in text
    assert f"| Wire version | {messages.WIRE_VERSION} |" in text
    assert f"at most {limits.MAX_HEADER_BYTES:,} bytes" in text
    assert f"({limits.MAX_MESSAGE_BYTES >> 20} MiB unless configured)" in text
    assert f"at most {limits.MAX_NAME_CHARS}\n" in text
    assert f"at most {limits.MAX_TEXT_CHARS:,};" in text
    assert (
        f"At most {limits.MAX_BUNDLE_ENTRIES:,} entries, {limits.MAX_BUNDLE_GROUPS} groups" in text
    )
    assert f"an envelope of {limits.MAX_ENVELOPE_BYTES:,} bytes" in text
    assert limits.MAX_REFERRED_BYTES == 1 << 30
    assert SEEK_S == 2.0
    assert f"heat takes {58 * 9 * 2 + 8 + 4 + 1:,} bytes a forward" in text
    epoch, session = EpochSettings(), SessionSettings()
    for figure in (
        f"`heartbeat_s` {session.heartbeat_s:g}",
        f"`silence_s` {session.silence_s:g}",
        f"`resend_s` {epoch.resend_s:g}",
        f"`margin_forwards` {epoch.margin_forwards}",
        f"`guard_forwards` {epoch.guard_forwards}",
    ):
        assert figure in text
