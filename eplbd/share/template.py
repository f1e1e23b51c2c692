"""A new policy package of one's own: `eplbd share policy-template`.

Owns the names in it and what is refused. Must not know what a policy does, nor the daemon.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from string import Template

from eplbd.errors import ConfigError
from eplbd.plugins import ALIASES, BUILT_IN, canonical, installed

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
FOLDER = Path(__file__).with_name("policy-template")
SUFFIX = ".in"


def write_policy_template(name: str, directory: Path | None = None) -> list[Path]:
    """Write a complete package for a policy called `name`; return its files.

    directory: made if it is not there; by default `eplbd-policy-<name>`, here.

    Raises:
        ConfigError: The name cannot be one or is taken, or the directory holds something.
        OSError: The files cannot be written.
    """
    _check(name)
    words = _words(name)
    target = directory or Path(words["distribution"])
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} holds something already; name another directory")
    written: list[Path] = []
    for text in sorted(FOLDER.rglob(f"*{SUFFIX}")):
        place = str(text.relative_to(FOLDER)).removesuffix(SUFFIX)
        path = target / place.replace("MODULE", words["module"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text.read_text("utf-8")).substitute(words), "utf-8")
        written.append(path)
    return written


def _check(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"`{name}` cannot be the name of a policy; expected lower case letters and digits, in "
            "words with one dash between them, the first beginning with a letter"
        )
    taken = {plugin.name: str(plugin) for plugin in (BUILT_IN, *installed())}
    taken |= {policy: f"vllm-ascend's policy {number}" for number, policy in ALIASES.items()}
    if canonical(name) in taken:
        raise ConfigError(f"policy `{name}` is there already: {taken[name]}; take another name")


def _words(name: str) -> dict[str, str]:
    version = metadata.version("eplbd").split(".")
    return {
        "name": name,
        "distribution": f"eplbd-policy-{name}",
        "module": f"eplbd_policy_{name.replace('-', '_')}",
        "klass": "".join(word.capitalize() for word in name.split("-")),
        "eplbd_version": ".".join([*version, "0", "0"][:3]),
    }
