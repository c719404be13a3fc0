"""Hooks in, hooks out: observation that leaves no trace on the model."""
