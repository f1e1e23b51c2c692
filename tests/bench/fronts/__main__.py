"""Fronts of balance against moves, ours beside the peers': what `make bench-policies` prints.

Peers' rows are measured once and kept in `.make/fronts`, keyed by load, peer and sources; ours are
measured in every run. Wall times depend on what else the machine does, CPU times less so.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.bench.fronts import claims, cost, ours, small, tables
from tests.bench.fronts.claims import Case
from tests.bench.fronts.rows import Kept, append
from tests.bench.fronts.unpack import MADE, peers
from tests.bench.fronts.yardstick import Load, SharedMissingError, Yardstick, shared

QUICK_S, ALL_S = 8.0, 60.0
"""CPU seconds for a plan; a peer that takes longer is left out, and said to be."""
GROUPS = ((32, 9), (256, 2))
SMALL = ("vllm", "sglang-vec", "ascend-swift", "ascend-flashlb-cold")
PLANNERS = ("incremental", "auto")


def main() -> None:
    """Run what was asked for; without the shared bench, what needs none."""
    args = arguments()
    yardstick = opened()
    cases = list(compared(yardstick, args)) if yardstick is not None else []
    if cases:
        print(tables.of_counts(cases))
        print(tables.of_settings(cases))
        print(tables.of_claims("Balance and moves", claims.claims(cases)))
    makers = {point.name: ours.entrant(point, []) for point in ours.points() if point.part is None}
    rivals = [name for name in SMALL if yardstick is not None and name in yardstick.peers()]
    if yardstick is not None:
        makers |= {name: yardstick.maker(name) for name in rivals}
    answers = [*small.answers(makers), *map(small.with_shares, ours.WEIGHTED)]
    print(tables.of_answers(answers))
    print(tables.of_claims("The optimum", claims.exact(answers, rivals)))
    there = {point.policy for point in ours.points()}
    costs = [cost.measured(name, *group) for name in PLANNERS if name in there for group in GROUPS]
    print(tables.of_claims("Time and memory, a load that walks", claims.price(costs)))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fronts", description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--quick", action="store_true", help="recorded traces, two shapes (default)"
    )
    extent.add_argument("--all", action="store_true", help="every shape and skew, slow peers too")
    parser.add_argument("--only", default="", help="loads whose name contains this")
    parser.add_argument("--json", type=Path, help="append all rows to this file, one per line")
    return parser.parse_args()


def opened() -> Yardstick | None:
    """The shared bench with its peers, or why there is none."""
    try:
        folder = shared()
    except SharedMissingError as error:
        print(f"no comparison with peers, no loads: {error}")
        return None
    yardstick = Yardstick(folder, peers())
    yardstick.one_thread()
    return yardstick


def compared(yardstick: Yardstick, args: argparse.Namespace) -> Iterator[Case]:
    """Every load, printed as it is done."""
    points = ours.points()
    for point in points:
        yardstick.enter(point.name, ours.entrant(point, yardstick.cpu_s))
    names = [point.name for point in points]
    kept = Kept(MADE / "fronts" / "peers.jsonl")
    print(f"peers: {', '.join(yardstick.peers())}; ours: {', '.join(names)}")
    for load in yardstick.loads(everything=args.all):
        if args.only in load.name:
            start = time.perf_counter()
            case = one(yardstick, load, names, kept, ALL_S if args.all else QUICK_S)
            print(tables.of_case(case), flush=True)
            print(f"{load.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            if args.json:
                append(args.json, [*case.peers, *case.ours])
            yield case


def one(yardstick: Yardstick, load: Load, names: list[str], kept: Kept, limit_s: float) -> Case:
    """One load; its windows are made once, and only for as long as they are needed."""
    built = load.build()
    theirs = []
    for peer in yardstick.peers():
        measure = partial(yardstick.run, peer, load.name, built, limit_s)
        theirs.append(kept.get(measure, load.name, peer, yardstick.key(peer), limit_s))
    mine = [yardstick.run(name, load.name, built, limit_s) for name in names]
    return Case(load.name, load.recorded, theirs, mine)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
