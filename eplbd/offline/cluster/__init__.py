"""The whole control plane, simulated: real machines and real frames, a made-up network and engine.

`core.node.Node` and `core.agent.Agent` run as in daemon and worker, through the real codec. What is
simulated is everything around them: clocks, network, decision register, transfers, traffic. One
seed, one run.
"""
