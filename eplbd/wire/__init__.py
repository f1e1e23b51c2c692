"""Bytes and messages. No sockets, no clocks, no meaning: what a message does is `eplbd.core`'s."""
