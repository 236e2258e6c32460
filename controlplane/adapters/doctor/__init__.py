"""The doctor's eyes: files with their positions, live metrics pages, Prometheus."""
