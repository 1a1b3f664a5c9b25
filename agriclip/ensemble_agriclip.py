"""Several suitability models that answer together (F23): their mean, and how far they disagree.

The paper averages raw outputs; here each member is calibrated first, and the mean once more, because the mean of
calibrated forecasts is too cautious (Ranjan and Gneiting 2010). Members run one after another. Disagreement is given
twice: as a standard deviation, and as the mutual information between the answer and the choice of the member, which is
what more data of the same kind could still teach.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers.utils.generic import ModelOutput

from .calibration_agriclip import FILE_NAME as CALIBRATION
from .calibration_agriclip import Calibration, json_list, json_text, read_object
from .modeling_agriclip import AgriClipForSuitability

FILE_NAME = "ensemble.json"
_FORMAT = "agriclip-ensemble-1"
_MEMBERS = "members"
# Inputs that only a loss needs, and encodings that belong to the towers of one member.
_FOR_THE_LOSS = (
    "labels",
    "label_weights",
    "detection_labels",
    "noise",
    "report_keys",
    "attacked_pixel_values",
    "attacked_numeric_values",
)
_ENCODED = ("text_model_output", "vision_model_output")


@dataclass
class AgriClipEnsembleOutput(ModelOutput):
    """Answer of K members about B places.

    Args:
        probabilities: Mean of the calibrated members, calibrated again (B,); the mean value for `regression`.
        std: Standard deviation over calibrated members, unbiased (K - 1), 0 for one member (B,).
        mutual_information: Entropy of the members' mean minus their mean entropy, in nats, from 0 to log 2 (B,);
            absent for `regression`.
        member_probabilities: Calibrated members (K, B).
        median_probabilities: Their median, calibrated again (B,): what conformal sets are of, see
            [`AgriClipEnsemble.prediction_sets`].
        report_probabilities: Like `probabilities`, from the report alone (B,).
        share: Mean share of land (B,), for `share`.
        image_valid: 1 where an image has a valid cell (B,).
    """

    probabilities: Tensor = None  # type: ignore[assignment]
    std: Tensor = None  # type: ignore[assignment]
    mutual_information: Tensor | None = None
    member_probabilities: Tensor = None  # type: ignore[assignment]
    median_probabilities: Tensor = None  # type: ignore[assignment]
    report_probabilities: Tensor = None  # type: ignore[assignment]
    share: Tensor | None = None
    image_valid: Tensor | None = None


class AgriClipEnsemble:
    """K models of suitability, asked together.

    Args:
        members: The models, one or more, of one likelihood; sizes may differ.
        member_calibrations: One a member; none is applied if None.
        calibration: Of the mean; none is applied if None.

    Raises:
        ValueError: There is no member, or members or calibrations do not belong together.
    """

    def __init__(
        self,
        members: Sequence[AgriClipForSuitability],
        member_calibrations: Sequence[Calibration] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        # Any: transformers annotates `to` in a way that hides its argument.
        self.members: list[Any] = list(members)
        self.member_calibrations = list(member_calibrations or [Calibration() for _ in self.members])
        self.calibration = calibration or Calibration()
        self._check()
        self.device = self.members[0].device
        self._in_turn = False

    def _check(self) -> None:
        if not self.members:
            raise ValueError("An ensemble needs at least one member.")
        calibrations = len(self.member_calibrations)
        if calibrations != len(self):
            raise ValueError(f"There are {calibrations} calibrations for {len(self)} members; give one a member.")
        said = [_predicts(member) for member in self.members]
        for number, what in enumerate(said[1:], start=2):
            if what != said[0]:
                raise ValueError(
                    f"Member 1 predicts {said[0]}, member {number} {what}; an ensemble needs members that predict "
                    "the same."
                )
        used = [calibration.method for calibration in [*self.member_calibrations, self.calibration]]
        if self.likelihood == "regression" and set(used) != {"none"}:
            raise ValueError("Members that predict a value by regression have no probabilities to calibrate.")

    @property
    def likelihood(self) -> str:
        """What the members were fitted to: `binary`, `share` or `regression`."""
        return self.members[0].config.suitability_likelihood

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[AgriClipForSuitability]:
        return iter(self.members)

    def to(self, device: str | torch.device, in_turn: bool = False) -> Self:
        """Predict on `device`; with `in_turn` the weights wait on the CPU and come one member at a time."""
        self.device, self._in_turn = torch.device(device), in_turn
        for member in self.members:
            member.to("cpu" if in_turn else self.device)
        return self

    def eval(self) -> Self:
        """Put all members in evaluation mode."""
        for member in self.members:
            member.eval()
        return self

    def __call__(self, **batch: Any) -> AgriClipEnsembleOutput:
        """Same as [`predict`]."""
        return self.predict(**batch)

    @torch.no_grad()
    def predict(self, **batch: Any) -> AgriClipEnsembleOutput:
        """Ask all members about a batch.

        Args:
            **batch: Inputs of [`AgriClipForSuitability`]; labels and what else a loss needs are passed over.

        Raises:
            ValueError: Encodings of one member's towers are given.
        """
        given = [name for name in _ENCODED if batch.get(name) is not None]
        if given:
            raise ValueError(
                f"`{given[0]}` belongs to the towers of one member; give the ensemble the inputs themselves."
            )
        inputs = {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name not in _FOR_THE_LOSS
        }
        answers: dict[str, list[Tensor]] = {"with": [], "without": [], "share": []}
        for member, calibration in zip(self.members, self.member_calibrations, strict=True):
            output = member.to(self.device)(**inputs)
            if self._in_turn:
                member.to("cpu")
            answers["with"].append(calibration.apply(output.probabilities.float()))
            answers["without"].append(calibration.apply(output.report_probabilities.float()))
            if output.share is not None:
                answers["share"].append(output.share.float())
        every = torch.stack(answers["with"])
        mean = every.mean(dim=0)
        return AgriClipEnsembleOutput(
            probabilities=self.calibration.apply(mean),
            std=every.std(dim=0) if len(self) > 1 else torch.zeros_like(mean),
            mutual_information=None if self.likelihood == "regression" else mutual_information(every),
            member_probabilities=every,
            median_probabilities=self.calibration.apply(every.quantile(0.5, dim=0)),
            report_probabilities=self.calibration.apply(torch.stack(answers["without"]).mean(dim=0)),
            share=torch.stack(answers["share"]).mean(dim=0) if answers["share"] else None,
            image_valid=output.image_valid,
        )

    def prediction_sets(
        self, output: AgriClipEnsembleOutput, alpha: float, group: str | Sequence[str] | None = None
    ) -> Tensor:
        """Which classes cannot be ruled out, (B, 2): unsuitable, suitable; see [`Calibration.prediction_sets`].

        The thresholds were fitted to single members at places that they had not seen. A mean is less extreme than its
        members and would miss them, so the sets are of the median member: a class belongs where for half of the
        members it does (a majority vote, as in cross-conformal prediction, Vovk 2015).

        Args:
            output: What [`predict`] returned.
            alpha: Share of places whose set may lack the truth.
            group: Group of all places, or of each.

        Raises:
            ValueError: There are no thresholds for `alpha`.
        """
        return self.calibration.prediction_sets(output.median_probabilities, alpha, group)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `ensemble.json`, `calibration.json` and, in `members/member_1` and so on, ordinary model folders.

        Members of an earlier, larger ensemble stay where they are, but are no longer listed.
        """
        folder = Path(folder)
        names = [f"{_MEMBERS}/member_{number}" for number in range(1, len(self) + 1)]
        for name, member, calibration in zip(names, self.members, self.member_calibrations, strict=True):
            member.save_pretrained(folder / name)
            calibration.save(folder / name)
        self.calibration.save(folder)
        content = {"format": _FORMAT, "members": names}
        (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, **kwargs: Any) -> Self:
        """Load an ensemble, in evaluation mode.

        Args:
            name: Folder of [`save_pretrained`], or of `fit_study`, whose folds are the members; or a repository on the
                Hub that holds the same. A plain model is an ensemble of one.
            revision: Of the repository.
            **kwargs: Passed on to each member's `from_pretrained`, `dtype` for instance.

        Raises:
            ValueError: There is no ensemble there, or it is damaged.
        """
        folder = Path(name)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(str(name), revision=revision))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"There is no ensemble '{name}': no such folder, nor a repository in reach."
                ) from error
        root, folders = _find_members(folder)
        members = [AgriClipForSuitability.from_pretrained(path, **kwargs).eval() for path in folders]
        calibrations = [_read_calibration(path) for path in folders]
        # Beside a single model the calibration is the member's own.
        of_mean = Calibration() if folders == [root] else _read_calibration(root)
        return cls(members, calibrations, of_mean)


def _predicts(member: AgriClipForSuitability) -> str:
    """What a member's probability is of."""
    config = member.config
    if config.suitability_likelihood == "share":
        return f"a share above {config.share_threshold:g}"
    return f"by {config.suitability_likelihood} likelihood"


def mutual_information(member_probabilities: Tensor) -> Tensor:
    """Entropy of the mean minus mean entropy of K Bernoulli distributions (K, ...), in nats: (...), 0 or more."""
    mean = member_probabilities.mean(dim=0)
    # Jensen's inequality makes it 0 or more; rounding need not.
    return (_entropy(mean) - _entropy(member_probabilities).mean(dim=0)).clamp(min=0)


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)


def _read_calibration(folder: Path) -> Calibration:
    return Calibration.load(folder) if (folder / CALIBRATION).exists() else Calibration()


def _find_members(folder: Path) -> tuple[Path, list[Path]]:
    """The folder that an ensemble lies in, and those of its members, in order."""
    if (folder / FILE_NAME).exists():
        return folder, _listed_members(folder)
    for root in (folder, folder / "model"):
        found = [path.parent for path in (root / _MEMBERS).glob("*/config.json")]
        if found:
            return root, sorted(found, key=_natural)
        if (root / "config.json").exists():
            return root, [root]
    raise ValueError(f"There is no ensemble in '{folder}': neither {FILE_NAME}, nor members, nor a model.")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts fold_10 after fold_2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _listed_members(folder: Path) -> list[Path]:
    path = folder / FILE_NAME
    try:
        content = read_object(path, {"format": json_text, "members": json_list(json_text)})
        if content["format"] != _FORMAT:
            raise ValueError(f"`format` is not '{_FORMAT}'")
        if not content["members"]:
            raise ValueError("`members` is empty")
        for name in content["members"]:
            # What comes from the Hub must not lead out of its folder.
            inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
            if not inside or not (folder / name / "config.json").is_file():
                raise ValueError(f"there is no model in its member '{name}'")
    except ValueError as error:
        raise ValueError(f"'{path}' is not an ensemble: {error}.") from error
    return [folder / name for name in content["members"]]


__all__ = ["AgriClipEnsemble", "AgriClipEnsembleOutput", "mutual_information"]
