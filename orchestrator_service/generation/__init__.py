"""From a spec to a prompt, from a prompt to an answer, from an answer to a checked conversation."""
