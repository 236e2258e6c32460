"""`site.yaml` in, a `Site` out, or every problem in it at once, each with its place. Start at `parse.py`."""
