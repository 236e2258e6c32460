"""What the world measures, brought in: direct scrape, Prometheus, the loop that keeps the latest of it."""
