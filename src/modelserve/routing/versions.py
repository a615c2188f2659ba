"""Policies that pick by version number or label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelserve.messages import InferRequest
from modelserve.protocols import Choice

__all__ = ["Latest", "Pinned"]


@dataclass(frozen=True, slots=True)
class Latest:
    """Send every request to the highest version that is ready, whatever the labels say.

    Example:
        >>> Latest().choose(InferRequest("iris", {}), ["1", "3"]).version
        '3'
    """

    def choose(self, request: InferRequest, versions: Sequence[str]) -> Choice:
        """Choose the last of the ascending versions."""
        return Choice(versions[-1] if versions else "")


@dataclass(frozen=True, slots=True)
class Pinned:
    """Send every request to one version; when that is not ready it is an error, never a detour.

    Args:
        version: Version number or label.

    Example:
        >>> Pinned("2").choose(InferRequest("iris", {}), ["1", "2", "3"]).version
        '2'
    """

    version: str

    def choose(self, request: InferRequest, versions: Sequence[str]) -> Choice:
        """Choose the pinned version."""
        return Choice(self.version)
