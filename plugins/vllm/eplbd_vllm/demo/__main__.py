"""The command: `python -m eplbd_vllm.demo --daemon PATH`, in the environment that has vLLM."""

import argparse
import sys
import tempfile
from pathlib import Path

from eplbd_vllm.demo.engines import EngineError
from eplbd_vllm.demo.latency import measure
from eplbd_vllm.demo.run import SHAPES, Options, play, say


def main() -> int:
    """Run the demo in a folder of its own."""
    parser = argparse.ArgumentParser(prog="eplbd_vllm.demo", description=__doc__)
    here = Path(sys.executable).parent
    parser.add_argument("--daemon", type=Path, default=here / "eplbd", help="the command eplbd")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3", help="of the model")
    parser.add_argument("--latency", action="store_true", help="measure token latency instead")
    parser.add_argument("--rounds", type=int, default=10, help="of the measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eplbd-vllm-") as folder:
        try:
            where = Options(options.daemon.absolute(), here, options.shape)
            if options.latency:
                measure(where, Path(folder), options.rounds)
                return 0
            held = play(where, Path(folder))
        except EngineError as error:
            say(str(error))
            return 1
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
