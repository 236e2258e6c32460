"""Backups, retention, recovery points, drills, and the verdicts on RPO and RTO."""
