"""Fitting AgriCLIP to a study, on the stock Trainer."""

from training.fit import fit_study

__all__ = ["fit_study"]
