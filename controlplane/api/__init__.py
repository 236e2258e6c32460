"""HTTP under /api/v1. It changes intent and hints loops; it never launches, stops or reloads anything."""
