"""Release to the Hub: a folder that needs nothing of this project, its card, and one commit.

Importing this package loads nothing heavy; see `folder`, `checks`, `clean_process`, `card`, `dataset_card`, `upload`
and `command`.
"""
