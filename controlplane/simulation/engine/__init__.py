"""A process that speaks vLLM's HTTP and metrics and is timed like the model and GPU it plays."""
