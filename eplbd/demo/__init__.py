"""A small mixture-of-experts model served for real on this machine's CPU, for `eplbd demo`.

Owns the engine of the demo: model, dispatch, traffic and the twin that never moves an expert. It
imports torch, so nothing outside this folder may import it before `eplbd demo` is asked for.
"""
