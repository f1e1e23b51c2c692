"""Where configuration values come from: a TOML file, the environment, flags; each with its place.

Owns the line of every statement in a file, the spelling of environment variables and the reading of
text as a value. Must not know what the keys mean: `config` decides what is known and what is valid.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eplbd.errors import ConfigError

_ENV_PREFIX = "EPLBD_"
# Variables that carry a section's name without being one of its keys.
_ENV_APART = frozenset({"EPLBD_PLUGINS", "EPLBD_SHARED", "EPLBD_DISABLE"})


TABLES = {("policy", "options"): 1, ("policy", "shadow_options"): 2}
"""Keys whose values are tables of names that others choose, and how deep these are."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value that somebody gave, before it is known to be right.

    `text` says that the value is a string only because its source can hold nothing else.
    """

    path: tuple[str, ...]
    value: object
    origin: str
    line: str = ""
    text: bool = False

    def refusal(self, message: str) -> ConfigError:
        """The error that quotes this value's place, and its line where it came from a file."""
        quote = f"\n    {self.line.strip()}" if self.line else ""
        return ConfigError(f"{self.origin}: {message}{quote}")


def near(word: str, words: Iterable[str]) -> str:
    """`; did you mean ...?` for an unknown word, or nothing when no known word is close."""
    match = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean `{match[0]}`?" if match else ""


def from_file(file: Path, sections: Mapping[str, object]) -> Iterator[Given]:
    """Every value of a TOML file, options of policies one by one.

    Raises:
        ConfigError: the file cannot be read, or is not TOML, with line and column.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_syntax_error(file, text, str(error))) from error
    numbers, lines = locate(text), text.split("\n")
    for path, value in _leaves(tables, sections):
        number = numbers[path]
        yield Given(path, value, f"{file}:{number}", lines[number - 1])


def _leaves(
    tables: Mapping[str, object], sections: Mapping[str, object]
) -> Iterator[tuple[tuple[str, ...], object]]:
    for section, table in tables.items():
        if not isinstance(table, dict) or not (table or section in sections):
            yield (section,), table
            continue
        for key, value in table.items():
            yield from _below((section, key), value, TABLES.get((section, key), 0))


def _below(
    path: tuple[str, ...], value: object, depth: int
) -> Iterator[tuple[tuple[str, ...], object]]:
    """The values in a table of tables, `depth` deep; what is empty, or no table, as it is."""
    if depth and isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _below((*path, name), item, depth - 1)
    else:
        yield path, value


def locate(text: str) -> dict[tuple[str, ...], int]:
    """The line, counted from 1, on which each table and key of a valid TOML text begins.

    The parser is the judge of where a statement ends: lines are added until it accepts them under
    the last header, so multi-line strings, arrays and dotted or quoted keys need no grammar here.
    """
    found: dict[tuple[str, ...], int] = {}
    header, chunk, start = "", "", 1
    for number, line in enumerate(text.split("\n"), 1):
        if not chunk:
            start = number
        chunk += line + "\n"
        is_header = chunk.lstrip().startswith("[")
        try:
            tables = tomllib.loads(chunk if is_header else header + chunk)
        except tomllib.TOMLDecodeError:
            continue
        if is_header:
            header = chunk
        for path in _paths(tables):
            found.setdefault(path, start)
        chunk = ""
    return found


def _paths(tables: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    for key, value in tables.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in _paths(value))


def _syntax_error(file: Path, text: str, message: str) -> str:
    place = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if place is None:  # "(at end of document)"
        return f"{file}: not TOML: {message}"
    number, column = map(int, place.groups())
    quote = text.split("\n")[number - 1].strip()
    return f"{file}:{number}:{column}: not TOML: {message[: place.start()]}\n    {quote}"


def from_env(
    env: Mapping[str, str], sections: Mapping[str, Mapping[str, object]]
) -> Iterator[Given]:
    """Every `EPLBD_SECTION__KEY`, and `EPLBD_PLUGINS` (names; empty turns all plugins off).

    Raises:
        ConfigError: a name that begins with a section's name and is no key of it.
    """
    if "EPLBD_PLUGINS" in env:
        text, origin = env["EPLBD_PLUGINS"], f"EPLBD_PLUGINS={env['EPLBD_PLUGINS']}"
        yield Given(("plugins", "enabled"), text, origin, text=True)
        if not text:
            yield Given(("plugins", "modules"), text, origin, text=True)
    for name in sorted(env):
        words = name.removeprefix(_ENV_PREFIX).lower()
        if not name.startswith(_ENV_PREFIX) or name in _ENV_APART:
            continue
        if "__" in words:
            path = tuple(words.split("__"))
            yield Given(path, env[name], f"{name}={env[name]}", text=True)
        elif section := next((known for known in sections if re.match(f"{known}(_|$)", words)), ""):
            known_names = (f"{_ENV_PREFIX}{section}__{key}".upper() for key in sections[section])
            hint = near(name, known_names) or "; a key of a section is EPLBD_SECTION__KEY"
            raise ConfigError(f"{name}={env[name]}: unknown variable{hint}")


def from_flags(flags: Mapping[str, str]) -> Iterator[Given]:
    """Every `-o section.key=value`."""
    for name, text in flags.items():
        yield Given(tuple(name.split(".")), text, f"-o {name}={text}", text=True)


def as_toml(text: str) -> object:
    """The TOML value that the text spells, or the text itself where it spells none."""
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value


def as_list(text: str) -> list[str]:
    """Words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
