"""Dimensions of the demo's model and the rules that make its arithmetic exact.

Owns `Shape`. It must not know torch, text or traces: an operator's wrong size is refused here,
before anything is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from eplbd.core.topology import Topology
from eplbd.errors import ConfigError

LANES = 32
"""`hidden` and `ffn` are multiples of this. torch runs two vectors of 16 floats at once where the
processor has AVX-512 and finishes the rest one float at a time with another `exp`: a row whose
length is a multiple never meets that remainder, so its result does not depend on its place."""

_FLOAT_BYTES = 4
_WIDTHS = (64, 32)
"""`hidden` and `ffn` tried for a recorded trace, widest first."""
_TRACE_BUDGET_BYTES = 768 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model, its slots and one step.

    hidden, ffn: floats per token between and inside experts. tokens: most tokens of one rank in
    one step. context: tokens before the first one of a step that its hidden state remembers. tile:
    rows of one matrix product. Raises ConfigError where they do not fit together.
    """

    layers: int = 6
    experts: int = 32
    topk: int = 4
    ranks: int = 4
    slots_per_rank: int = 10
    hidden: int = 64
    ffn: int = 64
    tokens: int = 64
    vocabulary: int = 4096
    context: int = 64
    tile: int = 16

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"demo: {name} is {value}, expected at least 1")
        if self.topk > self.experts:
            raise ConfigError(f"demo: topk is {self.topk}, expected at most experts {self.experts}")
        if self.slots < self.experts:
            raise ConfigError(
                f"demo: {self.ranks} ranks x {self.slots_per_rank} slots cannot hold "
                f"{self.experts} experts; raise slots_per_rank"
            )
        if self.slots_per_rank > self.experts:
            raise ConfigError(
                f"demo: slots_per_rank is {self.slots_per_rank}, expected at most experts "
                f"{self.experts}: no rank needs an expert twice"
            )
        for name, width in (("hidden", self.hidden), ("ffn", self.ffn)):
            if width % LANES:
                raise ConfigError(f"demo: {name} is {width}, expected a multiple of {LANES}")

    @classmethod
    def for_trace(
        cls, *, layers: int, experts: int, topk: int, ranks: int, tokens: int = 64
    ) -> Self:
        """Shape that replays a trace: a quarter of the slots redundant, as wide as memory allows.

        The budget counts the live experts and the twin's of all ranks. Raises ConfigError where
        even the narrowest model is larger.
        """
        per_rank = min(experts, max(-(-experts // ranks) + 1, -(-experts * 5 // (ranks * 4))))
        size_bytes = 0
        for width in _WIDTHS:
            shape = cls(
                layers=layers,
                experts=experts,
                topk=topk,
                ranks=ranks,
                slots_per_rank=per_rank,
                hidden=width,
                ffn=width,
                tokens=tokens,
            )
            size_bytes = 2 * layers * shape.slots * shape.expert_bytes
            if size_bytes <= _TRACE_BUDGET_BYTES:
                return shape
        raise ConfigError(
            f"demo: {layers} layers x {experts} experts need {size_bytes >> 20} MiB at the "
            f"narrowest, expected at most {_TRACE_BUDGET_BYTES >> 20} MiB; use a smaller trace"
        )

    @property
    def slots(self) -> int:
        """Physical experts per layer over all ranks."""
        return self.ranks * self.slots_per_rank

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer: `w13`, `w2` and `w2_scale`."""
        return _FLOAT_BYTES * (3 * self.hidden * self.ffn + self.hidden)

    @property
    def topology(self) -> Topology:
        """The group as the daemon sees it: one node."""
        return Topology.single_node(self.ranks, self.slots_per_rank)
