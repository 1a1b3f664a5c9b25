"""The released checkpoint: one small model for tiles, counties and time series, and how it came about."""
