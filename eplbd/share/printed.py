"""Files for an operator to install, printed complete: `eplbd share unit` and its kin.

Owns which there are and the words that depend on this installation. Must not know what is in them.
"""

from __future__ import annotations

import grp
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from eplbd.errors import ConfigError

FOLDER = Path(__file__).parent

PRINTED: Mapping[str, tuple[str, str]] = {
    "unit": ("eplbd.service.in", "Print the systemd unit of this installation's daemon."),
    "sysusers": ("eplbd.sysusers", "Print the user and group of the daemon, for sysusers.d."),
    "engine": ("engine.conf", "Print a drop-in for the unit of an engine on the host."),
    "cluster": ("cluster.conf", "Print a drop-in for the daemon's unit, for several nodes."),
    "container": ("container.conf.in", "Print a drop-in for the Podman unit of an engine."),
    "alerts": ("alerts.yaml", "Print alert rules for Prometheus."),
    "dashboard": ("dashboard.json", "Print a dashboard for Grafana."),
}
"""What to ask for: the file in this folder, and the sentence about it. The text of a file called
.in has `$words` of this machine; any other is printed as it is."""

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""What ProtectHome and PrivateTmp of the unit keep from the daemon."""


def printed(name: str) -> str:
    """The text of one of `PRINTED`, with the words of this machine.

    Raises:
        ConfigError: A word cannot be had here; the message says what to do first.
    """
    path = FOLDER / PRINTED[name][0]
    text = path.read_text("utf-8")
    if path.suffix != ".in":
        return text
    template = Template(text)
    return template.substitute({word: _WORDS[word]() for word in template.get_identifiers()})


def doubts(name: str, places: Sequence[Path] | None = None) -> Iterator[str]:
    """What would keep a printed text from working as it is; for the unit: what it cannot see.

    places: what the daemon has to reach, by default this installation and its Python.
    """
    if name != "unit":
        return
    for place in places if places is not None else (_eplbd(), Path(sys.base_prefix)):
        for hidden in HIDDEN:
            if place.is_relative_to(hidden):
                yield (
                    f"the unit hides {hidden} from the daemon, and {place} is there; install eplbd "
                    "with a Python that is elsewhere: a virtual environment such as /opt/eplbd"
                )


def _eplbd() -> Path:
    """This installation's command, absolute: a service manager has no PATH to look in."""
    beside = Path(sys.executable).with_name("eplbd")
    return (beside if beside.exists() else Path(shutil.which("eplbd") or "eplbd")).absolute()


def _group() -> str:
    """The number of the daemon's group: inside a container it has no name."""
    try:
        return str(grp.getgrnam("eplbd").gr_gid)
    except KeyError as error:
        raise ConfigError(
            "there is no group eplbd yet; install the output of `eplbd share sysusers` as "
            "/etc/sysusers.d/eplbd.conf and run systemd-sysusers first"
        ) from error


_WORDS: Mapping[str, Callable[[], str]] = {"command": lambda: str(_eplbd()), "group": _group}
