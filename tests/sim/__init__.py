"""A simulated group: real machines, simulated network, register, transport and clock."""
