"""Every message of the protocol, by hypothesis and by example, from its own declaration.

A message that is added to the protocol is covered without a line here.
"""

from __future__ import annotations

import enum
from dataclasses import Field, fields
from typing import Any, get_type_hints

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from eplbd.core.messages import Message
from eplbd.wire.codec import Codec
from eplbd.wire.limits import MAX_FLOAT, MAX_INT, MAX_NAME_CHARS
from eplbd.wire.messages import AGENT, FROM_AGENT, FROM_LEADER, LEADER

ALL: dict[str, type[Message]] = {**FROM_AGENT, **FROM_LEADER}


def codec_of(tag: str) -> Codec[Any]:
    """The half of the protocol that holds `tag`; Any: a test feeds either half by name."""
    return AGENT if tag in FROM_AGENT else LEADER


def _hints(kind: type[Message]) -> dict[str, Any]:
    return get_type_hints(kind, localns={"np": np, "NDArray": NDArray})


def _values(field: Field[Any], hint: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401 - as hinted
    if "dtype" in field.metadata:
        shapes = npst.array_shapes(
            min_dims=field.metadata["ndim"], max_dims=field.metadata["ndim"], min_side=0, max_side=5
        )
        arrays = npst.arrays(field.metadata["dtype"], shapes)
        return st.none() | arrays if may_be_left_out(field) else arrays
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    return {
        bool: st.booleans(),
        int: st.integers(0, MAX_INT),
        float: st.floats(0.0, MAX_FLOAT),
        str: st.text(max_size=MAX_NAME_CHARS),
    }[hint]


def may_be_left_out(field: Field[Any]) -> bool:
    """Whether the field is an array that a message may come without."""
    return "dtype" in field.metadata and field.default is None


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of `kind` that a peer may send."""
    hints = _hints(kind)
    return st.builds(kind, **{f.name: _values(f, hints[f.name]) for f in fields(kind)})


def any_message() -> st.SearchStrategy[Message]:
    """Any message of the protocol."""
    return st.sampled_from(sorted(ALL)).flatmap(lambda tag: messages_of(ALL[tag]))


def example(kind: type[Message], *, whole: bool = False) -> Message:
    """The one message of `kind` whose bytes are golden: every field a value of its own.

    whole: with the array that may be left out, too.
    """
    hints = _hints(kind)
    values: dict[str, Any] = {}
    for place, field in enumerate(fields(kind), start=1):
        hint = hints[field.name]
        if may_be_left_out(field) and not whole:
            continue
        if "dtype" in field.metadata:
            shape = (2, 3, 4)[: field.metadata["ndim"]]
            values[field.name] = ((np.arange(np.prod(shape)) + place).reshape(shape) % 251).astype(
                field.metadata["dtype"]
            )
        elif isinstance(hint, type) and issubclass(hint, enum.Enum):
            values[field.name] = list(hint)[-1]
        else:
            values[field.name] = {bool: True, int: place, float: place / 2, str: field.name}[hint]
    return kind(**values)


def assert_same(left: Message, right: Message) -> None:
    """Equal field by field; arrays in dtype, shape and every element."""
    assert type(left) is type(right)
    for field in fields(left):
        ours, theirs = getattr(left, field.name), getattr(right, field.name)
        if "dtype" in field.metadata and ours is not None:
            assert theirs is not None, field.name
            assert ours.dtype == theirs.dtype, field.name
            assert ours.shape == theirs.shape, field.name
            assert np.array_equal(ours, theirs), field.name
        else:
            assert type(ours) is type(theirs), field.name
            assert ours == theirs, field.name
