"""Vocabulary that more than one feature uses. Frozen values only; no input, no output."""
