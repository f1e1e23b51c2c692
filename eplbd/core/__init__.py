"""The pure part of eplbd: values and state machines, events in, effects out.

Owns no clock, socket, thread, log or source of randomness, and must not know the wire, the runtime,
a policy or torch: numpy and the pure parts of the standard library are all it stands on.
"""
