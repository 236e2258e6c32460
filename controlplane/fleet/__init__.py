"""Nodes: who is seen, who is lost, who is gone."""
