"""The part of eplbd that runs inside an engine's worker process: threads, no event loop.

Owns nothing itself; import the modules. Only those named `torch_*` import torch.
"""
