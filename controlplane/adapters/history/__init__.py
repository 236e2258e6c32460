"""Metrics of the past, from a Prometheus that somebody else runs."""
