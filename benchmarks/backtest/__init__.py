"""The back-test: what the estimator would have said of past batches, beside an oracle that knows the truth."""
