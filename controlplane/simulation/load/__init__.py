"""Load on a gateway: a trace or a generated day, sent open-loop, and an honest report of what came back."""
