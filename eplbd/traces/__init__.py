"""Heat and placements on disk: what the daemon records and what the offline tools read.

Owns the two forms of a trace (one npz of windows, a directory of chunks) and the file of a
placement. numpy and plain files; must not know policies, sockets, clocks or who records.
"""
