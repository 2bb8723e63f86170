"""A local server that speaks the Anthropic Messages API: the keyless default, and the tests' opponent."""
