"""Where the windows of a map lie, how they blend, and sums that add.

Three choices define this file. Weights are whole numbers, small enough that the weighted sum of equal 32-bit values is
exact in 64 bits: where all windows agree, the mean is that value, bit for bit. Sums know how to be added, mean and
spread alike, so that a map may be cut anywhere and put together again. And windows never leave the raster: the last
one is moved back to the edge, and only a raster smaller than a window is padded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from processing.errors import AgriClipError

FloatArray = NDArray[np.float64]

# The weights that meet in a pixel may add up to this along an axis, 2**28 over both: times the 24 bits of a 32-bit
# number that still fits the 53 of a 64-bit one.
_MOST_WEIGHT = 2**14
_FLOOR = 1 / 64  # weight at a window's edge over that at its middle


@dataclass
class Accumulator:
    """Weighted sums over the windows that cover each pixel of an area of h x w pixels.

    Attributes:
        weights: Sum of weights w (h, w).
        values: Sum of w v (K, h, w); NaN where there is no data.
        squares: Sum of w (v - mean)^2 (K, h, w), or None where the spread is not asked for.
    """

    weights: FloatArray
    values: FloatArray
    squares: FloatArray | None = None

    @classmethod
    def empty(cls, count: int, height: int, width: int, spread: bool = False) -> Self:
        """Sums over no window yet."""
        # The neutral element of addition is -0.0: 0.0 would turn a sum of negative zeros into a positive one.
        values = np.full((count, height, width), -0.0)
        return cls(np.zeros((height, width)), values, np.zeros_like(values) if spread else None)

    @classmethod
    def of(cls, mean: NDArray[np.floating], weights: FloatArray, variance: NDArray[np.floating] | None = None) -> Self:
        """Sums that have this mean (K, h, w) and variance under weights (h, w); a window's own variance is 0."""
        values = mean.astype(np.float64) * weights
        return cls(weights.copy(), values, None if variance is None else variance.astype(np.float64) * weights)

    def part(self, rows: slice, columns: slice) -> Accumulator:
        """A view of an area: what is added to it is added here."""
        squares = None if self.squares is None else self.squares[:, rows, columns]
        return Accumulator(self.weights[rows, columns], self.values[:, rows, columns], squares)

    def __iadd__(self, other: Accumulator) -> Self:
        """Add the windows of another, in place.

        Squared deviations combine as in Chan, Golub & LeVeque 1983 (The American Statistician 37:242), equation 1.5
        with weights: they stay exactly 0 where both means are the same number.
        """
        if self.squares is not None and other.squares is not None:
            total = self.weights + other.weights
            both = np.divide(self.weights * other.weights, total, out=np.zeros_like(total), where=total > 0)
            met = both > 0
            apart = np.where(met, other.mean - self.mean, 0.0)
            self.squares += other.squares
            self.squares += apart * apart * both
        self.weights += other.weights
        self.values += other.values
        return self

    def __add__(self, other: Accumulator) -> Accumulator:
        """Sums over the windows of both."""
        squares = None if self.squares is None else self.squares.copy()
        total = Accumulator(self.weights.copy(), self.values.copy(), squares)
        total += other
        return total

    @property
    def mean(self) -> FloatArray:
        """Weighted mean (K, h, w), NaN where no window or no data is."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.values / self.weights)

    @property
    def variance(self) -> FloatArray:
        """Weighted variance over windows (K, h, w): 0 where there is but one.

        Raises:
            AgriClipError: The spread was not asked for.
        """
        if self.squares is None:
            raise AgriClipError("These sums were made without their spread; ask for it with spread=True.")
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(np.isnan(self.values), np.nan, self.squares / self.weights))


@dataclass(frozen=True)
class Unit:
    """A run of neighbouring windows of one row of windows: what is worked on and kept as one.

    Attributes:
        number: Its number.
        row: Index of the row of windows.
        first: Index of its first column of windows.
        stop: Index after its last one.
        rows: Pixel rows that its windows cover.
        columns: Pixel columns that they cover.
    """

    number: int
    row: int
    first: int
    stop: int
    rows: slice
    columns: slice


@dataclass(frozen=True)
class TilePlan:
    """Windows of `tile` x `tile` pixels, every `stride` pixels, over a raster of any size from 1 x 1.

    Attributes:
        height: Rows of the raster.
        width: Columns of the raster.
        tile: Edge of a window.
        stride: Step between windows, at most the edge.
    """

    height: int
    width: int
    tile: int
    stride: int

    def __post_init__(self) -> None:
        """Refuse windows that leave gaps."""
        if min(self.height, self.width) < 1:
            raise AgriClipError(f"A raster has at least one row and one column, not {self.height} x {self.width}.")
        if not 1 <= self.stride <= self.tile:
            raise AgriClipError(
                f"Windows of {self.tile} pixels every {self.stride} pixels leave gaps or stand still; choose a stride "
                f"from 1 to {self.tile}."
            )

    @cached_property
    def tops(self) -> list[int]:
        """First row of each row of windows."""
        return window_origins(self.height, self.tile, self.stride)

    @cached_property
    def lefts(self) -> list[int]:
        """First column of each column of windows."""
        return window_origins(self.width, self.tile, self.stride)

    @cached_property
    def row_weights(self) -> FloatArray:
        """Weight of each row of a window (tile,)."""
        return window_weights(self.tile, self.stride, self.tops)

    @cached_property
    def column_weights(self) -> FloatArray:
        """Weight of each column of a window (tile,)."""
        return window_weights(self.tile, self.stride, self.lefts)

    @property
    def window_weights(self) -> FloatArray:
        """Weight of each pixel of a window (tile, tile)."""
        return np.outer(self.row_weights, self.column_weights)

    def units(self, most_columns: int, most_rows: int = 1) -> list[Unit]:
        """Cut the windows into units.

        Args:
            most_columns: Windows of a unit.
            most_rows: Rows of windows that follow each other within a run of columns before the next run begins:
                those that share the blocks of a file.
        """
        found: list[Unit] = []
        for group in range(0, len(self.tops), most_rows):
            for first in range(0, len(self.lefts), most_columns):
                stop = min(first + most_columns, len(self.lefts))
                left, right = self.lefts[first], min(self.lefts[stop - 1] + self.tile, self.width)
                for row in range(group, min(group + most_rows, len(self.tops))):
                    top, bottom = self.tops[row], min(self.tops[row] + self.tile, self.height)
                    found.append(Unit(len(found), row, first, stop, slice(top, bottom), slice(left, right)))
        return found

    def unit_weights(self, unit: Unit) -> tuple[FloatArray, FloatArray]:
        """Weights of a unit's pixel rows (h,) and sums of those of its pixel columns (w,)."""
        columns = np.zeros(unit.columns.stop - unit.columns.start)
        for left in self.lefts[unit.first : unit.stop]:
            start = left - unit.columns.start
            columns[start : start + self.tile] += self.column_weights[: len(columns) - start]
        return self.row_weights[: unit.rows.stop - unit.rows.start], columns


def window_origins(size: int, tile: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis of `size` pixels; the last window ends with the axis."""
    last = max(size - tile, 0)
    return [*range(0, last, stride), last]


def window_weights(tile: int, stride: int, origins: list[int]) -> FloatArray:
    """Whole, positive, symmetric weights of a window's pixels along an axis: a raised cosine on a floor.

    Args:
        tile: Edge of a window.
        stride: Step; where it is the edge, all weights are 1.
        origins: Windows along the axis, for how many meet in a pixel.

    Raises:
        AgriClipError: So many meet that their weights could not add up exactly.
    """
    if stride == tile:
        return np.ones(tile)
    starts = np.asarray(origins)
    # A window counts in a pixel if it begins at it or less than an edge before.
    meet = int((np.arange(1, len(starts) + 1) - np.searchsorted(starts, starts - tile, side="right")).max())
    height = min(255, _MOST_WEIGHT // meet)
    if height < 1:
        raise AgriClipError(f"{meet} windows would meet in a pixel; choose a stride above {stride}.")
    place = (np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 0.5) / tile
    shape = _FLOOR + (1 - _FLOOR) * np.array([math.sin(math.pi * x) ** 2 for x in place])
    return np.maximum(1.0, np.round(height * shape))


__all__ = ["Accumulator", "TilePlan", "Unit", "window_origins", "window_weights"]
