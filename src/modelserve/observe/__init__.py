"""What is learnt from closed exchanges: metrics. Nothing here knows models or repositories."""
