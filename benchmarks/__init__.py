"""What `make bench` measures: Parley against the plain script that a user would write, on one sandbox, in one run."""
