"""The command line: the public API and nothing else, but for commands that start processes."""
