"""Where the vLLM adapters of eplbd will live. There are none yet.

Installing this distribution changes nothing: it registers no entry point, so vLLM does not load
it, and importing it does nothing.
"""
