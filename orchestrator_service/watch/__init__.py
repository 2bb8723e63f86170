"""Watchers: committed facts fan out to streams. A pure observer: no stream ever slows or stops a batch."""

from orchestrator_service.watch.watchers import Watchers

__all__ = ["Watchers"]
