"""Files to start from, and what writes them: `eplbd share`.

The other files here are package data: texts, those called .in with `$name` where words of the
author or of the machine go.
"""
