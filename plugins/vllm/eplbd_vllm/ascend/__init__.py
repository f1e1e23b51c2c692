"""Adapters for vllm-ascend: what differs on Ascend from vLLM's own balancer.

`install` puts the first generation's seat (`dynamic_eplb`, model runner V1) where the engine's
updater was; `torch_tables` adds to the upstream adapter what the second generation routes by. Only
modules named `torch_*` import torch, and none imports vllm-ascend before the engine has.
"""
