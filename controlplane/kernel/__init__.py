"""Words that every other package uses. Imports nothing of ours."""
