"""`python -m eplbd_vllm.demo`: a real `vllm serve` on a CPU, balanced by a real daemon.

The model is tiny and random, written when it is needed; everything else is the real thing.
"""
