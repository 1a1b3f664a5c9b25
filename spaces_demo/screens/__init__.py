"""The seven screens, one file each; `build(page)` lays a screen out and wires its events."""
