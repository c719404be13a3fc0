"""Measurements of gradwatch: how right it is, and what it costs."""
