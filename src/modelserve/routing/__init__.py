"""Policies: they see requests and the names of versions, never models."""
