"""Copies of datasets: sealed, packed, written to a bucket, and read back."""
