"""The tools that need no engine: simulate, diagnose, convert, plot.

Owns what is computed from traces and placements on disk. Knows `core`, `traces` and how policies
are found; must not know the daemon, the workers, sockets or an event loop. matplotlib, jinja2 and
the like are imported only where they are used: `pip install 'eplbd[offline]'`.
"""
