"""Load for a server: requests made once, sent over raw connections, and what came of them.

The command is `modelserve.cli.bench`. Nothing here prints but the report it hands over.
"""
