"""The node agent: an HTTP server beside the GPUs."""
