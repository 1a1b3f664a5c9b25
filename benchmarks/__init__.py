"""Comparisons on public data; each is a script with options, run from the project's root."""
