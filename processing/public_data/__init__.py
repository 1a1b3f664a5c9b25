"""Public data: a registry of sources, their download, and loaders into studies and tile folders.

Importing this package loads nothing heavy; see `registry`, `acquire` and `command`.
"""
