"""What makes conversations: the supervisor, a runner for each batch, the limiter they share."""
