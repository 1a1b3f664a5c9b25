"""A fitted model folder, asked about places: its members together, each distinct report encoded once.

The report is tokenised once and only its numbers change. Among N places each distinct vector of numbers goes through
the report encoder once, however many places tell it and whether or not the image is shown beside it; what a member
sees in the images of a place is computed once for all climates.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from mapping.outputs import file_sha256
from modeling_agriclip import AgriClipForSuitability, Calibration
from modeling_agriclip.calibration_agriclip import FILE_NAME as CALIBRATION
from modeling_agriclip.ensemble_agriclip import mutual_information
from modeling_agriclip.report_agriclip import AgriClipTextOutput
from modeling_agriclip.vision_agriclip import AgriClipVisionOutput
from processing.climate_report import ReportTokens
from processing.errors import AgriClipError

_BATCH = 256


@dataclass
class Member:
    """A fitted network.

    Attributes:
        model: The network, in evaluation mode.
        path: Its folder.
        calibration: What makes its probabilities honest, where one was fitted.
    """

    model: AgriClipForSuitability
    path: Path
    calibration: Calibration | None = None


@dataclass
class Answer:
    """What an ensemble says of N cells, each (N,) float32.

    Attributes:
        probability: Mean probability of suitability over members.
        median: Median over members, which conformal sets are of.
        without_image: Mean probability from the report alone.
        std: Standard deviation over members (K - 1); 0 for a single one.
        mutual_information: What the members' disagreement leaves open, in nats (entropy of their mean less their mean
            entropy); 0 for a single one.
        share: Mean predicted share, for models of a share; else None.
    """

    probability: NDArray[np.float32]
    median: NDArray[np.float32]
    without_image: NDArray[np.float32]
    std: NDArray[np.float32]
    mutual_information: NDArray[np.float32]
    share: NDArray[np.float32] | None


class SuitabilityPredictor:
    """The members of a model folder, asked together.

    Args:
        model_dir: Folder of `fit_study`; its `members/` if there are any, else the model itself.

    Attributes:
        processor: Tokenizer and image processor.
        members: The networks, each with the calibration of its own.
        calibration: That of their mean, with the thresholds of the conformal sets; None if there is none.
        hash: SHA-256 of everything that answers: the weights and calibrations of all members.

    Raises:
        AgriClipError: There is no model in the folder.
    """

    def __init__(self, model_dir: str | Path) -> None:
        folder = Path(model_dir)
        if not (folder / "config.json").exists():
            raise AgriClipError(f"There is no model in '{folder}'; make one with `agriclip fit STUDY`.")
        transformers_logging.disable_progress_bar()
        self.processor = AutoProcessor.from_pretrained(folder)
        folders = sorted((folder / "members").glob("fold_*")) or [folder]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.members = [self._load(path) for path in folders]
        self.calibration = Calibration.load(folder) if (folder / CALIBRATION).exists() else None
        self.hash = _hash_of(folder, folders)

    def _load(self, path: Path) -> Member:
        """A member with its calibration, if it has one."""
        model = AgriClipForSuitability.from_pretrained(path).eval().to(self.device)
        calibrated = (path / CALIBRATION).exists()
        return Member(model, path, Calibration.load(path) if calibrated else None)

    @torch.inference_mode()
    def look(self, images: dict[str, Tensor]) -> list[AgriClipVisionOutput]:
        """What each member sees in N images; the images of a place are the same in every scenario.

        Args:
            images: `pixel_values` (N, C, s, s), `pixel_mask`, `channels` (C, 4) and `gsd` (1,).
        """
        seen = []
        for member in self.members:
            parts = []
            for start in range(0, len(images["pixel_values"]), _BATCH):
                cut = {k: v[start : start + _BATCH] if k.startswith("pixel") else v for k, v in images.items()}
                parts.append(member.model.vision_model(**cut))
            # The place as a whole is asked, not the cells of its chip.
            kept = ("pooler_output", "image_valid", "channel_means", "channel_valid", "channels")
            joined = {key: torch.cat([part[key] for part in parts]) for key in kept}
            nothing = joined["pooler_output"][:, None][:, :0]
            seen.append(AgriClipVisionOutput(last_hidden_state=nothing, cell_mask=nothing[..., 0].long(), **joined))
        return seen

    @torch.inference_mode()
    def predict(
        self, tokens: ReportTokens, values: NDArray[np.float32], seen: list[AgriClipVisionOutput] | None = None
    ) -> Answer:
        """Ask all members about N cells.

        Args:
            tokens: The tokenised report.
            values: (N, n_slots) numbers of each cell's report.
            seen: What [`look`] returned for the N cells; None for no image.
        """
        # Cells of one report stand together, so it is encoded once, or twice where a batch ends between them.
        order = np.lexsort(values.T) if values.shape[1] else np.arange(len(values))
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        parts = [self._batch(tokens, values, seen, cells) for cells in batches]
        back = np.argsort(order, kind="stable")
        joined = {
            key: torch.cat([part[key] for part in parts], dim=1).float().cpu().numpy()[:, back] for key in parts[0]
        }
        probability = joined["with"]
        return Answer(
            probability=probability.mean(axis=0),
            median=np.median(probability, axis=0),
            without_image=joined["without"].mean(axis=0),
            std=probability.std(axis=0, ddof=1) if len(probability) > 1 else np.zeros_like(probability[0]),
            mutual_information=mutual_information(torch.from_numpy(probability)).numpy(),
            share=joined["share"].mean(axis=0) if "share" in joined else None,
        )

    def _batch(
        self,
        tokens: ReportTokens,
        values: NDArray[np.float32],
        seen: list[AgriClipVisionOutput] | None,
        cells: NDArray[np.int64],
    ) -> dict[str, Tensor]:
        """Answers of every member to some of the cells, each (K, B)."""
        distinct, cell = np.unique(values[cells], axis=0, return_inverse=True)
        numbers = torch.from_numpy(tokens.numeric_values(distinct)).to(self.device)
        ids = torch.from_numpy(tokens.input_ids).to(self.device).expand(len(distinct), -1)
        mask = torch.from_numpy(tokens.attention_mask).to(self.device)
        place = torch.from_numpy(cell.reshape(-1)).to(self.device)
        chosen = torch.from_numpy(cells).to(self.device)
        answers: dict[str, list[Tensor]] = {"with": [], "without": []}
        for number, member in enumerate(self.members):
            text = member.model.text_model(ids, mask.expand(len(distinct), -1), numbers)
            # Encoded once a distinct report, then handed to each cell that tells it.
            text = AgriClipTextOutput(**{key: value[place] for key, value in text.items()})
            asked = {"attention_mask": mask.expand(len(place), -1), "text_model_output": text}
            if seen is not None:
                own = {key: value[chosen] for key, value in seen[number].items()}
                asked["vision_model_output"] = AgriClipVisionOutput(**own)
            answer = member.model(**asked)
            for key, chance in (("with", answer.probabilities), ("without", answer.report_probabilities)):
                answers[key].append(chance if member.calibration is None else member.calibration.apply(chance))
            if answer.share is not None:
                answers.setdefault("share", []).append(answer.share)
        return {key: torch.stack(parts) for key, parts in answers.items()}


def _hash_of(folder: Path, members: list[Path]) -> str:
    """One SHA-256 for the files that the answers depend on."""
    digest = hashlib.sha256()
    for path in dict.fromkeys([folder, *members]):
        for name in ("config.json", "model.safetensors", CALIBRATION):
            if (path / name).exists():
                digest.update(f"{name} {file_sha256(path / name)}\n".encode())
    return digest.hexdigest()


__all__ = ["Answer", "Member", "SuitabilityPredictor"]
