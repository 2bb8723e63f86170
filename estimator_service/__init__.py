"""BatchEstimator: quotes cost and time of workloads, and learns from what happened."""
