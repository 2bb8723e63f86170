"""Parley's Python client: everything a program needs to speak the contract."""
