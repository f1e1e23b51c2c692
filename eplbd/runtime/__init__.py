"""The daemon's shell: sockets, files, clocks, processes. Decides nothing; `eplbd.core` does."""
