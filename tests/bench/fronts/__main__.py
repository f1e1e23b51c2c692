"""Fronts of balance against moves, ours beside the peers': what `make bench-policies` prints.

Rows are measured once and kept in `.make/fronts`, keyed by load, policy and sources, so that a run
that was stopped goes on where it was. Each peer is asked in a process of its own, with a limit: one
that is too slow or crashes is said to be. Wall times depend on what else the machine does, CPU
times less so.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from tests.bench.fronts import claims, cost, ours, small, tables
from tests.bench.fronts.bounded import bounded
from tests.bench.fronts.claims import Case
from tests.bench.fronts.rows import Kept, Row, append
from tests.bench.fronts.unpack import MADE, peers
from tests.bench.fronts.yardstick import Load, SharedMissingError, Yardstick, shared

LIMIT_S = 180.0
"""CPU seconds for all plans of a peer on one load."""
GROUPS = ((32, 9), (256, 2))
SMALL = ("vllm", "sglang-vec", "ascend-swift", "ascend-flashlb-cold")
PLANNERS = ("incremental", "auto")
LATER = "not measured yet: run again to go on"


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
    parser.add_argument(
        "--limit-s",
        type=float,
        default=LIMIT_S,
        help="CPU seconds that a peer may take for one load (%(default)g)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="measure nothing new after so many; a later run goes on from there",
    )
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


@dataclass(frozen=True, slots=True)
class Run:
    """What measures one row, or finds it. until: monotonic seconds; nothing is begun later."""

    yardstick: Yardstick
    peers: Kept
    ours: Kept
    limit_s: float
    until: float

    def case(self, load: Load, names: list[str]) -> Case:
        """One load; its windows are made if they are needed, once."""
        built = cache(load.build)
        theirs = [self.theirs(load, built, peer) for peer in self.yardstick.peers()]
        mine = [self.mine(load, built, name) for name in names]
        return Case(load.name, load.recorded, theirs, mine)

    def theirs(self, load: Load, built: Callable[[], tuple[object, object]], peer: str) -> Row:
        """A peer's row, from a process of its own."""
        key, failed = self.yardstick.key(peer), Row(load=load.name, policy=peer)
        row = self.peers.find(load.name, peer, key, self.limit_s)
        if row is not None or time.monotonic() > self.until:
            return row or msgspec.structs.replace(failed, error=LATER)
        windows = built()
        row = bounded(lambda: self.yardstick.run(peer, load.name, windows), failed, self.limit_s)
        return self.peers.keep(row, key, self.limit_s)

    def mine(self, load: Load, built: Callable[[], tuple[object, object]], name: str) -> Row:
        """A row of ours."""
        key = self.yardstick.own_key()
        row = self.ours.find(load.name, name, key, 0.0)
        if row is not None or time.monotonic() > self.until:
            return row or Row(load=load.name, policy=name, error=LATER)
        return self.ours.keep(self.yardstick.run(name, load.name, built()), key, 0.0)


def compared(yardstick: Yardstick, args: argparse.Namespace) -> Iterator[Case]:
    """Every load, printed as it is done."""
    points = ours.points()
    for point in points:
        yardstick.enter(point.name, ours.entrant(point, yardstick.cpu_s))
    names = [point.name for point in points]
    folder, until = MADE / "fronts", time.monotonic() + 60 * args.minutes
    run = Run(
        yardstick, Kept(folder / "peers.jsonl"), Kept(folder / "ours.jsonl"), args.limit_s, until
    )
    print(f"peers: {', '.join(yardstick.peers())}; ours: {', '.join(names)}")
    loads = [load for load in yardstick.loads(everything=args.all) if args.only in load.name]
    for number, load in enumerate(loads, 1):
        start = time.perf_counter()
        case = run.case(load, names)
        rows = [row for row in (*case.peers, *case.ours) if row.error != LATER]
        took = f"{time.perf_counter() - start:.0f} s" if rows else LATER
        print(f"{number} of {len(loads)}: {load.name}: {took}", file=sys.stderr, flush=True)
        if rows:
            print(tables.of_case(case), flush=True)
            yield case
        if args.json:
            append(args.json, rows)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
