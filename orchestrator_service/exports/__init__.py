"""Conversations to dataset files: one module a format."""
