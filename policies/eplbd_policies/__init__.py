"""The placement policies that come with eplbd.

Each module here is a plugin of its own, registered through the entry-point group `eplbd.policies`
exactly as anybody else's. A policy knows the root names of `eplbd` and nothing below them.
"""
