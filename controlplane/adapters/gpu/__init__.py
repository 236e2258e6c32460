"""GPUs as NVML or the simulation shows them, and the metric names in which that is told."""
