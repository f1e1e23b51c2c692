"""Files to start from, and what writes them: `eplbd share`.

The folders beside this file are package data, texts with `$name` where the author's words go.
"""
