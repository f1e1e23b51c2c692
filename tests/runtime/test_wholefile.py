"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from eplbd.wholefile import replacing


def test_the_file_changes_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def _fail_halfway(path: Path, fault: BaseException) -> None:
    with replacing(path) as file:
        file.write(b"half")
        raise fault


@pytest.mark.parametrize("fault", [OSError("disk"), ValueError("content"), KeyboardInterrupt()])
def test_a_block_that_fails_changes_and_leaves_nothing(
    tmp_path: Path, fault: BaseException
) -> None:
    path = tmp_path / "map.npz"
    path.write_bytes(b"old")
    with pytest.raises(type(fault)):
        _fail_halfway(path, fault)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
