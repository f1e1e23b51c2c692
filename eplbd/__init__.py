"""Expert-parallel load balancing as a per-node daemon: the names that plugin authors import."""
