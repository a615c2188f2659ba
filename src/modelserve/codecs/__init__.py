"""Codecs: bytes to messages and back. Pure functions, no input or output, nothing awaited."""
