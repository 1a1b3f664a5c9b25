"""Calibration at prediction time: a map from a network's probabilities to honest ones, and sets that may be undecided.

Three choices. A calibration is plain numbers in `calibration.json` beside the weights, so that a map can be redrawn
without the data it was fitted on. No calibrated probability is exactly 0 or 1. Prediction sets come from thresholds
of their own for each class (Mondrian conformal prediction): a rare class is covered as often as a common one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE_NAME = "calibration.json"
# Those that need least first.
METHODS = ("none", "temperature", "platt", "isotonic")
_SIGMOIDS = ("temperature", "platt")
_FORMAT = "agriclip-calibration-1"
# Knots closer than this would be one in single precision.
MIN_STEP = 1e-6
# Places that tie with a threshold belong to the set, however the processor rounds.
_TIE = 1e-6
# A probability is brought this far inside (0, 1) before its logit is taken.
LOGIT_EPS = 1e-6


@dataclass(frozen=True)
class ConformalLevel:
    """Thresholds of the sets that miss the truth with probability `alpha` at most.

    Args:
        alpha: Share of places whose set may lack the true class, in (0, 1).
        pooled: Largest nonconformity, 1 minus the class's probability, at which `unsuitable` and `suitable` still
            belong to the set; 1 where there were too few places to exclude anything.
        groups: The same for named groups of places, such as regions.
    """

    alpha: float
    pooled: tuple[float, float]
    groups: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"`alpha` ({self.alpha}) must lie between 0 and 1")
        for name, pair in {"pooled": self.pooled, **self.groups}.items():
            if len(pair) != 2 or not all(0 <= threshold <= 1 for threshold in pair):
                raise ValueError(f"the thresholds of '{name}' at alpha {self.alpha} must be two numbers in [0, 1]")


@dataclass(frozen=True)
class Calibration:
    """What is done to probabilities after the network, and what may be concluded from them.

    Args:
        method: One of `METHODS`.
        scale: Factor on the logit for `temperature` (Guo et al. 2017 write 1 / T) and `platt`.
        shift: Added to the scaled logit for `platt`.
        x: Probabilities before, rising by 1e-6 or more, for `isotonic`.
        y: Probabilities after, at `x`; linear between and constant beyond.
        epsilon: Calibrated probabilities lie in [epsilon, 1 - epsilon].
        fitted_on: Number of places the map was fitted on.
        levels: Conformal thresholds, one entry an alpha.
        counts: Places behind the thresholds of each class, (unsuitable, suitable).
        group_counts: The same for each named group.

    Raises:
        ValueError: The numbers do not make a calibration.
    """

    method: str = "none"
    scale: float = 1.0
    shift: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    epsilon: float = 1e-6
    fitted_on: int = 0
    levels: tuple[ConformalLevel, ...] = ()
    counts: tuple[int, int] = (0, 0)
    group_counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got '{self.method}'")
        if not (0 < self.scale < math.inf and math.isfinite(self.shift)):
            raise ValueError(f"`scale` ({self.scale}) must be positive and `shift` ({self.shift}) finite")
        if not 1e-7 <= self.epsilon < 0.5:
            raise ValueError(f"`epsilon` ({self.epsilon}) must lie in [1e-7, 0.5)")
        if len(self.x) != len(self.y) or (self.method == "isotonic") != (len(self.x) >= 2):
            raise ValueError(
                f"'{self.method}' cannot have {len(self.x)} values `x` and {len(self.y)} values `y`; isotonic needs "
                "two or more of both, any other method none"
            )
        if not all(0 <= value <= 1 for value in self.x + self.y):
            raise ValueError("`x` and `y` must lie in [0, 1]")
        if any(b - a < MIN_STEP for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError(f"`x` must rise by {MIN_STEP:g} or more at each step")
        if any(a > b for a, b in zip(self.y, self.y[1:], strict=False)):
            raise ValueError("`y` must not fall")
        alphas = [level.alpha for level in self.levels]
        if len(set(alphas)) != len(alphas):
            raise ValueError(f"`levels` has an alpha twice: {alphas}")
        if min([self.fitted_on, *self.counts, *(n for pair in self.group_counts.values() for n in pair)]) < 0:
            raise ValueError("a number of places cannot be negative")

    def apply(self, probabilities: Tensor) -> Tensor:
        """Calibrated probabilities, in (0, 1) and in the same order.

        Args:
            probabilities: What the network gave, of any shape; NaN stays NaN.

        Returns:
            Same shape, in float32 at least; untouched for `none`.
        """
        if self.method == "none":
            return probabilities
        values = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
        if self.method in _SIGMOIDS:
            values = torch.sigmoid(self.scale * torch.special.logit(values, eps=LOGIT_EPS) + self.shift)
        else:
            values = self._interpolate(values)
        return values.clamp(self.epsilon, 1 - self.epsilon)

    def _interpolate(self, values: Tensor) -> Tensor:
        """Piecewise linear through the knots, constant beyond the first and the last."""
        x = torch.tensor(self.x, dtype=values.dtype, device=values.device)
        y = torch.tensor(self.y, dtype=values.dtype, device=values.device)
        values = values.clamp(x[0], x[-1])
        right = torch.searchsorted(x, values.contiguous()).clamp(1, len(x) - 1)
        step = (values - x[right - 1]) / (x[right] - x[right - 1])
        # Rounding must not lift the end of one piece above the start of the next.
        return torch.minimum(y[right - 1] + step * (y[right] - y[right - 1]), y[right])

    def prediction_sets(self, probabilities: Tensor, alpha: float, group: str | Sequence[str] | None = None) -> Tensor:
        """Which classes cannot be ruled out.

        Among places like those of the fit, of either class at most `alpha` have a set without the true class. In
        another climate or region nothing is guaranteed.

        Args:
            probabilities: Calibrated probabilities of `suitable` (...), what [`apply`] returned.
            alpha: One of the levels that were fitted.
            group: Group of all places, or of each in row-major order; the pooled thresholds serve groups that were
                not fitted.

        Returns:
            (..., 2) bool, `unsuitable` and `suitable`: both is undecided, neither is strange. NaN gives neither.

        Raises:
            ValueError: The level was not fitted, or the groups are not one a place.
        """
        level = self._level(alpha)
        if group is None or isinstance(group, str):
            pairs = [level.pooled if group is None else level.groups.get(group, level.pooled)]
        elif len(group) == probabilities.numel():
            pairs = [level.groups.get(name, level.pooled) for name in group]
        else:
            raise ValueError(f"There are {len(group)} groups for {probabilities.numel()} places; give one a place.")
        values = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
        limits = torch.tensor(pairs, dtype=values.dtype, device=values.device) + _TIE
        limits = limits[0] if len(pairs) == 1 else limits.view(*values.shape, 2)
        return torch.stack([values, 1 - values], dim=-1) <= limits

    def _level(self, alpha: float) -> ConformalLevel:
        for level in self.levels:
            if math.isclose(level.alpha, alpha, abs_tol=1e-9):
                return level
        known = ", ".join(f"{level.alpha:g}" for level in self.levels)
        raise ValueError(
            f"There are no conformal thresholds for alpha {alpha:g}; "
            + (f"use one of: {known}." if known else "fit the calibration on labels of 0 and 1 to have some.")
        )

    def save(self, folder: str | Path) -> Path:
        """Write `calibration.json` into `folder`, beside the weights; returns its path."""
        content = {
            "format": _FORMAT,
            "method": self.method,
            "scale": self.scale,
            "shift": self.shift,
            "x": self.x,
            "y": self.y,
            "epsilon": self.epsilon,
            "fitted_on": self.fitted_on,
            "levels": [{"alpha": v.alpha, "pooled": v.pooled, "groups": v.groups} for v in self.levels],
            "counts": self.counts,
            "group_counts": self.group_counts,
        }
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "Calibration":
        """Read `calibration.json` of `folder`; every number comes back as it was.

        Raises:
            ValueError: There is none, or what is there is not one, in a sentence that says what is wrong with it.
        """
        path = Path(folder) / FILE_NAME
        try:
            content = read_object(path, _FIELDS)
            if content.pop("format") != _FORMAT:
                raise ValueError(f"`format` is not '{_FORMAT}'")
            content["levels"] = tuple(ConformalLevel(**level) for level in content["levels"])
            return cls(**content)
        except FileNotFoundError as error:
            raise ValueError(f"There is no {FILE_NAME} in '{folder}'.") from error
        except ValueError as error:
            raise ValueError(f"'{path}' is not a calibration: {error}.") from error


def read_object(path: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with exactly the fields asked for, each put through its reader.

    Raises:
        ValueError: The file is not such an object; the message begins in the middle of a sentence.
        FileNotFoundError: There is no file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno} is not JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError("it is not JSON text") from error
    return _object(content, fields, "the file")


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _object(value: Any, fields: dict[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    for name in fields:
        if name not in value:
            raise ValueError(f"`{name}` is missing from {where}")
    for name in value:
        if name not in fields:
            raise ValueError(f"{where} has the unknown field `{name}`")
    return {name: read(value[name], f"`{name}`") for name, read in fields.items()}


def json_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is not a text")
    return value


def _number(value: Any, where: str) -> float:
    # A bool is an int to Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} is not a number")
    return float(value)


def _count(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where} is not a whole number")
    return value


def json_list(read: Any, length: int | None = None) -> Any:
    def read_list(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise ValueError(f"{where} is not a list" + ("" if length is None else f" of {length}"))
        return tuple(read(item, where) for item in value)

    return read_list


def _named(read: Any) -> Any:
    def read_named(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is not an object")
        return {name: read(item, f"{where} of '{name}'") for name, item in value.items()}

    return read_named


_NUMBERS = json_list(_number)
_PAIR = json_list(_number, 2)
_COUNTS = json_list(_count, 2)
_LEVEL = {"alpha": _number, "pooled": _PAIR, "groups": _named(_PAIR)}
_FIELDS: dict[str, Any] = {
    "format": json_text,
    "method": json_text,
    "scale": _number,
    "shift": _number,
    "x": _NUMBERS,
    "y": _NUMBERS,
    "epsilon": _number,
    "fitted_on": _count,
    "levels": json_list(lambda value, where: _object(value, _LEVEL, f"an entry of {where}")),
    "counts": _COUNTS,
    "group_counts": _named(_COUNTS),
}

__all__ = ["Calibration", "ConformalLevel"]
