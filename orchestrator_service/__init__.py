"""The orchestrator: keeps batches of conversations, pays for them once and tells how they go."""
