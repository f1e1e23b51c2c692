"""OPERATIONS.md speaks of what there is: alerts, commands, settings and files by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from eplbd.cli import main
from eplbd.config import Config

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "OPERATIONS.md").read_text("utf-8")
ALERTS = (REPOSITORY / "eplbd/share/alerts.yaml").read_text("utf-8")


def spans() -> list[str]:
    """What stands in backticks or in a block of commands."""
    blocks = re.findall(r"(?s)```sh\n(.*?)```", TEXT)
    rest = re.sub(r"(?s)```.*?```", "", TEXT)
    lines = [line for block in blocks for line in block.splitlines()]
    return lines + [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest)]


def named() -> Iterator[tuple[str, list[str]]]:
    """Every `eplbd ...` of the text, as it stands there and in words."""
    for span in spans():
        if re.match(r"eplbd [a-z]", span):
            yield span, [word for word in span.split()[1:] if re.fullmatch(r"[a-z-]+", word)]


def test_every_alert_has_its_paragraph_and_no_other_does() -> None:
    alerts = re.findall(r"(?m)^ +- alert: (\w+)$", ALERTS)
    assert alerts
    assert re.findall(r"(?m)^### (Eplbd\w+)$", TEXT) == alerts


def test_every_command_is_there() -> None:
    seen = 0
    for span, words in named():
        command: click.Command = main
        for word in words:
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, span
            command = command.commands[word]
            seen += 1
    assert seen


def test_every_setting_is_there() -> None:
    sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
    pattern = rf"({'|'.join(sections)})\.([a-z_]+)"
    seen = 0
    for span in spans():
        for section, key in re.findall(rf"^{pattern}$", span):
            assert key in {field.name for field in msgspec.structs.fields(sections[section])}, span
            seen += 1
    assert seen


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_every_link_leads_somewhere(link: str) -> None:
    if link.startswith("#"):
        headings = re.findall(r"(?m)^#+ (.+)$", TEXT)
        assert link[1:] in {heading.lower().replace(" ", "-") for heading in headings}
    else:
        assert (REPOSITORY / link).exists()
