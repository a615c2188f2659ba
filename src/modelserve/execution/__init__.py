"""Runs requests on backends: queue, batching, instances, deadlines. Knows nothing of transports."""
