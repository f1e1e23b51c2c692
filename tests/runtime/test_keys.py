"""Key pairs and trust directories: what is made, what is taken, what is refused and how."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import zmq
import zmq.auth
from click.testing import CliRunner

from eplbd.cli import main
from eplbd.errors import ConfigError
from eplbd.runtime.keys import KeyPair, demand_somebody, generate, read_pair, read_trust


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a pair in it."""
    generate(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    """A trust directory that is empty."""
    folder = tmp_path / "trust"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    return folder


def other(folder: Path, trust: Path, name: str) -> KeyPair:
    """Another node's pair, and its public half among those that are trusted."""
    pair = generate(folder / name)
    shutil.copy(folder / name / "node.key", trust / f"{name}.key")
    return pair


# --- a pair -------------------------------------------------------------------------------------


def test_a_new_pair_belongs_together_and_is_nobody_elses(keys: Path) -> None:
    pair = read_pair(keys / "node.key_secret")
    assert zmq.curve_public(pair.secret) == pair.public
    assert (keys / "node.key_secret").stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_mode & 0o777 == 0o700
    assert zmq.auth.load_certificate(keys / "node.key") == (pair.public, None)
    assert sorted(path.name for path in keys.iterdir()) == ["node.key", "node.key_secret"]
    assert pair.secret.decode() not in repr(pair)


def test_a_pair_is_never_overwritten(keys: Path) -> None:
    before = (keys / "node.key_secret").read_bytes()
    with pytest.raises(ConfigError, match=r"node\.key_secret exists; a node keeps its key"):
        generate(keys)
    assert (keys / "node.key_secret").read_bytes() == before
    assert sorted(path.name for path in keys.iterdir()) == ["node.key", "node.key_secret"]


def test_a_missing_key_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.key_file: there is no .*`eplbd keygen`"):
        read_pair(tmp_path / "node.key_secret")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_secret_that_others_may_read_is_refused(keys: Path, mode: int) -> None:
    file = keys / "node.key_secret"
    file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"others .* may read .*mode {mode:04o}.*chmod 600"):
        read_pair(file)
    # What the service manager hands over shows the group's bits for an access list.
    assert read_pair(file, credentials=keys).public


def test_a_secret_that_cannot_be_reached_is_refused(keys: Path) -> None:
    (keys / "node.key_secret").unlink()
    (keys / "node.key_secret").symlink_to(keys / "node.key_secret")
    with pytest.raises(ConfigError, match=r"cannot read .*eplbd share cluster"):
        read_pair(keys / "node.key_secret")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_secret_of_another_user_is_refused(keys: Path) -> None:
    os.chown(keys / "node.key_secret", 12_345, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        read_pair(keys / "node.key_secret")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no certificate"),
        ("curve\n", "is no certificate"),
        ('public-key = "PUBLIC"\n', "has no secret key"),
        ('public-key = "short"\nsecret-key = "SECRET"\n', "belong together"),
        ('public-key = "PUBLIC"\nsecret-key = "short"\n', "belong together"),
        ('public-key = "SECRET"\nsecret-key = "SECRET"\n', "belong together"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, text: str, words: str) -> None:
    public, secret = zmq.curve_keypair()
    file = tmp_path / "node.key_secret"
    file.write_text(text.replace("PUBLIC", public.decode()).replace("SECRET", secret.decode()))
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=words):
        read_pair(file)


# --- whom it trusts -----------------------------------------------------------------------------


def test_trust_is_the_keys_in_the_directory_by_their_files_names(
    tmp_path: Path, trust: Path
) -> None:
    pairs = {name: other(tmp_path, trust, name) for name in ("node-a", "node-b")}
    (trust / "README").write_text("not a key")
    (trust / ".hidden.key").write_text("an editor's")
    found = read_trust(trust)
    assert found.names == {pair.public: name for name, pair in pairs.items()}
    assert not found.faults
    assert pairs["node-a"].public in found
    assert zmq.curve_keypair()[0] not in found
    (trust / "node-a.key").unlink()
    assert pairs["node-a"].public not in read_trust(trust)


def test_a_file_that_is_no_public_key_is_a_fault_and_hides_no_other(
    tmp_path: Path, trust: Path
) -> None:
    good = other(tmp_path, trust, "good")
    shutil.copy(tmp_path / "good" / "node.key_secret", trust / "mixed.key")
    shutil.copy(tmp_path / "good" / "node.key_secret", trust / "copied.key_secret")
    shutil.copy(trust / "good.key", trust / "twin.key")
    (trust / "empty.key").write_text("")
    (trust / "short.key").write_text('curve\n    public-key = "short"\n')
    (trust / "huge.key").write_text("#" * 100_000)
    found = read_trust(trust)
    assert list(found.names) == [good.public]
    told = {fault.split(":")[1].rpartition("/")[2]: fault for fault in found.faults}
    assert "only public ones belong here" in told.pop("mixed.key")
    assert "only public ones belong here" in told.pop("copied.key_secret")
    assert "the same key as good.key" in told.pop("twin.key")
    assert "No public key" in told.pop("empty.key")
    assert "40 characters" in told.pop("short.key")
    assert "too large" in told.pop("huge.key")
    assert not told
    with pytest.raises(ConfigError, match=r"copied\.key_secret.*\n.*empty\.key"):
        demand_somebody(found, trust, good.public)


def test_a_directory_that_trusts_nobody_else_is_refused(tmp_path: Path, trust: Path) -> None:
    with pytest.raises(ConfigError, match="holds no key of another node"):
        demand_somebody(read_trust(trust), trust, b"")
    own = other(tmp_path, trust, "self")
    with pytest.raises(ConfigError, match="holds no key of another node"):
        demand_somebody(read_trust(trust), trust, own.public)
    other(tmp_path, trust, "second")
    demand_somebody(read_trust(trust), trust, own.public)


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_others_may_write_to_is_refused(trust: Path, mode: int) -> None:
    trust.chmod(mode)
    with pytest.raises(ConfigError, match=r"others than its owner may put keys.*chmod go-w"):
        read_trust(trust)


def test_a_missing_directory_is_refused(trust: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.trust_dir: cannot read .*make it"):
        read_trust(trust / "none")


# --- the command --------------------------------------------------------------------------------


def test_keygen_makes_a_pair_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    result = CliRunner().invoke(main, ["keygen", "--dir", str(folder)])
    assert result.exit_code == 0, result.output
    pair = read_pair(folder / "node.key_secret")
    assert pair.public.decode() in result.output
    assert pair.secret.decode() not in result.output
    assert f"{folder}/node.key" in result.output
    again = CliRunner().invoke(main, ["keygen", "--dir", str(folder)])
    assert again.exit_code == 1
    assert "exists" in again.output
    assert read_pair(folder / "node.key_secret") == pair
