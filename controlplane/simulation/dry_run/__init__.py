"""A user's own history of plain vLLM under Prometheus, rebuilt as demand and played again under other policies."""
