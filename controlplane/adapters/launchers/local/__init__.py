"""Replicas as process groups on this machine, found again through their environment."""
