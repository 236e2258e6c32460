"""What was used: GPU-hours first."""
