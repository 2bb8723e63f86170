"""What waits for the estimator, in the order in which it must come there: observations, outcomes, checkpoints."""

from orchestrator_service.outbox.outbox import Outbox

__all__ = ["Outbox"]
