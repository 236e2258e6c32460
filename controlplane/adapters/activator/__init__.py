"""A process beside HAProxy for what HAProxy cannot do: hold requests while a replica wakes, and read long bodies."""
