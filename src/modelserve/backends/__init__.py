"""Backends: objects that run one batch. ONNX Runtime sessions and Python callables live here.

Nothing here knows about requests, batching or transports.
"""
