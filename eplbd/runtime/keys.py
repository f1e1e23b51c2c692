"""Who this node is, and whom it trusts: a CURVE key pair, and a directory of public keys.

Owns the files: pyzmq's certificates, so that any tool that knows these may make them. A key is the
only authority between nodes; a file's name is what the log calls its holder. Must not know sockets,
nor what a trusted node may say.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth

from eplbd.errors import ConfigError
from eplbd.tcp import is_key

KEY_FILE, TRUST_DIR = "cluster.key_file", "cluster.trust_dir"
NAME = "node"
"""What the files of a new pair are called: `node.key` and `node.key_secret`."""

CERTIFICATE_BYTES = 65_536
"""A certificate takes a few hundred."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A node's own keys, in z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """Public keys of other nodes, in z85, each with the name of its file.

    faults: what is in the directory and could not be taken, for the operator.
    """

    names: Mapping[bytes, str]
    faults: tuple[str, ...] = ()

    def __contains__(self, key: object) -> bool:
        """Whether the holder of this key may speak to us."""
        return key in self.names

    def name(self, key: bytes) -> str:
        """What the log calls the holder."""
        return self.names.get(key, "unknown")


def read_pair(path: Path, credentials: Path | None = None) -> KeyPair:
    """The pair in a secret certificate.

    Args:
        path: The file.
        credentials: A folder that the service manager guards, where a file's mode says little.

    Raises:
        ConfigError: It is missing, somebody else may read it, or it is no secret certificate.
    """
    made = "`eplbd keygen` makes one"
    try:
        status = path.stat()
        public, secret = zmq.auth.load_certificate(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{KEY_FILE}: there is no {path}; {made}") from error
    except OSError as error:
        raise ConfigError(
            f"{KEY_FILE}: cannot read {path}: {error.strerror or error}; it must belong to the "
            "daemon's user, or come as a credential (`eplbd share cluster`)"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{KEY_FILE}: {path} is no certificate; {made}") from error
    if credentials is None or credentials not in path.parents:
        _refuse_what_others_may_read(path, status)
    if secret is None:
        raise ConfigError(
            f"{KEY_FILE}: {path} has no secret key: that is the public half; the other is the file "
            "of the same name that ends in .key_secret"
        )
    if not is_key(public.decode(errors="replace")) or not _belong_together(public, secret):
        raise ConfigError(f"{KEY_FILE}: {path} does not hold two keys that belong together; {made}")
    return KeyPair(public, secret)


def read_trust(folder: Path) -> Trust:
    """Every public key in a folder, as it is now.

    Raises:
        ConfigError: It cannot be read, or others than its owner may put keys there.
    """
    try:
        status = folder.stat()
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"{TRUST_DIR}: cannot read {folder}: {error.strerror}; make it, and put the public key "
            "of every other node there, as NODE.key"
        ) from error
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"{TRUST_DIR}: others than its owner may put keys into {folder}; chmod go-w {folder}"
        )
    names: dict[bytes, str] = {}
    faults: list[str] = []
    for path in files:
        if path.suffix not in {".key", ".key_secret"}:
            continue
        try:
            key = _public_key(path)
        except (OSError, ValueError) as error:
            faults.append(f"{TRUST_DIR}: {path}: {error}")
        else:
            if names.setdefault(key, path.stem) != path.stem:
                faults.append(f"{TRUST_DIR}: {path}: the same key as {names[key]}.key")
    return Trust(names, tuple(faults))


def demand_somebody(trust: Trust, folder: Path, own: bytes) -> None:
    """Refuse, at a start, a directory that has a fault, or nobody but this node.

    Raises:
        ConfigError: As said; with what to do.
    """
    if trust.faults:
        raise ConfigError("\n".join(trust.faults))
    if not set(trust.names) - {own}:
        raise ConfigError(
            f"{TRUST_DIR}: {folder} holds no key of another node; copy the node.key of each there, "
            'as NODE.key, or set cluster.listen = "" for a node alone'
        )


def generate(folder: Path) -> KeyPair:
    """Make a pair in a folder, which is made if it is missing; nobody else may read its secret.

    Raises:
        ConfigError: There is one already, or it cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = os.umask(0o077)
        try:
            with tempfile.TemporaryDirectory(prefix=".keygen.", dir=folder) as apart:
                public, secret = map(Path, zmq.auth.create_certificates(apart, NAME))
                public.chmod(0o644)
                # A link fails where the name is taken: no key is ever overwritten.
                os.link(secret, folder / secret.name)
                os.link(public, folder / public.name)
        finally:
            os.umask(before)
    except FileExistsError as error:
        taken = error.filename2 or error.filename
        raise ConfigError(
            f"{taken} exists; a node keeps its key. For another one, move the pair away first"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot make a pair of keys in {folder}: {error.strerror}") from error
    return read_pair(folder / secret.name)


def _public_key(path: Path) -> bytes:
    """The key in another node's certificate; ValueError or OSError says what is wrong with it."""
    if path.stat().st_size > CERTIFICATE_BYTES:
        raise ValueError("too large for a certificate")
    public, secret = zmq.auth.load_certificate(path)
    if secret is not None or path.suffix == ".key_secret":
        raise ValueError(
            "holds a secret key, and only public ones belong here; make that node a new pair"
        )
    if not is_key(public.decode(errors="replace")):
        raise ValueError("expected a public key of 40 characters")
    return public


def _refuse_what_others_may_read(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in {0, os.geteuid()}:
        raise ConfigError(f"{KEY_FILE}: {path} belongs to another user; chown it to the daemon's")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"{KEY_FILE}: others than its owner may read {path} (mode "
            f"{stat.S_IMODE(status.st_mode):04o}); chmod 600 {path}, and if they may have read it, "
            "make a new pair: `eplbd keygen`"
        )


def _belong_together(public: bytes, secret: bytes) -> bool:
    try:
        return zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        return False
