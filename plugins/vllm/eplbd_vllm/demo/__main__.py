"""The command: `python -m eplbd_vllm.demo --daemon PATH`, in the environment that has vLLM."""

import argparse
import sys
import tempfile
from pathlib import Path

from eplbd_vllm.demo.engines import EngineError
from eplbd_vllm.demo.run import Options, play, say


def main() -> int:
    """Run the demo in a folder of its own."""
    parser = argparse.ArgumentParser(prog="eplbd_vllm.demo", description=__doc__)
    here = Path(sys.executable).parent
    parser.add_argument("--daemon", type=Path, default=here / "eplbd", help="the command eplbd")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eplbd-vllm-") as folder:
        try:
            held = play(Options(options.daemon.absolute(), here), Path(folder))
        except EngineError as error:
            say(str(error))
            return 1
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
