"""Named scenarios of the protocol, readable without the code: `*.txt` beside this file.

`EPLBD_UPDATE=1` rewrites what follows each command; read the difference before you commit it.
"""

import os
from pathlib import Path

import pytest

from tests.interaction.script import Script

FOLDER = Path(__file__).parent
TRANSCRIPTS = sorted(FOLDER.glob("*.txt"))


def replay(text: str) -> str:
    """Return the transcript with what really follows each command."""
    script = Script()
    blocks = []
    for block in text.rstrip("\n").split("\n\n"):
        head, mark, _ = block.partition("\n----")
        blocks.append(f"{head}\n----\n{script.perform(head)}" if mark else block)
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    written = path.read_text()
    happened = replay(written)
    if os.environ.get("EPLBD_UPDATE"):
        path.write_text(happened)
    assert happened == written


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 10
