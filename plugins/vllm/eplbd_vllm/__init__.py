"""vLLM adapters of eplbd: what joins a rank of a serving engine to the daemon of its node.

vLLM loads `plugin` by its entry point in `vllm.general_plugins`; nothing has to be imported by
hand. Owns nothing itself. Only the modules named `torch_*` and `selection` import torch, and none
imports vLLM before the engine has.
"""
