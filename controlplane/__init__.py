"""Quarterdeck: one control plane for a GPU fleet that a team owns."""

__version__ = "0.1.0"
