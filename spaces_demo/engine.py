"""The model behind the page: loaded in the background, asked under a lock, never by two visitors at once.

Four choices define this file. torch and transformers are imported when the model is first asked, so the page opens
without them. A place is asked with the image of today that the map was made with, and once without it. A report that
a visitor wrote goes the same way as that of a cell: its numbers become slots, and every member of the ensemble answers
with its own calibration. And the folder that judges suitability need not be the one that segments images by text: an
example may bring the small model of its maps, beside the released one.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from processing.errors import AgriClipError
from spaces_demo.example import Example

__all__ = ["MOST_CHARACTERS", "Engine", "TextAnswer", "default_model"]

#: Longest report that is read at all; what the model reads of it is counted in tokens after that.
MOST_CHARACTERS = 20_000
_TEXT_BATCH = 16
_SEEN_PLACES = 64


def default_model() -> Path:
    """The model folder: the environment variable AGRICLIP_MODEL, or `agriclip/` at the root of the repository.

    A name such as `owner/model` that is no folder is fetched from the Hub.
    """
    given = os.environ.get("AGRICLIP_MODEL", "")
    folder = Path(given) if given else Path(__file__).resolve().parent.parent / "agriclip"
    if given and not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", given):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(given))
    return folder


@dataclass(frozen=True)
class TextAnswer:
    """What the members say of a report.

    Attributes:
        probability: Mean over members.
        std: Standard deviation over members; 0 for a single one.
        low: Lowest member.
        high: Highest member.
        share: Predicted share of land, for models of a share.
    """

    probability: float
    std: float
    low: float
    high: float
    share: float | None


class Engine:
    """A model folder and the example, asked together.

    Args:
        example: The example.
        model_dir: Folder of the model of suitability, or of an ensemble with `members/`; if None the example's own,
            else `default_model()`.
        segment_dir: Folder of the model that segments; if None that of suitability where it can, else
            `default_model()`.
    """

    def __init__(
        self, example: Example, model_dir: str | Path | None = None, segment_dir: str | Path | None = None
    ) -> None:
        self.example = example
        self._given = None if model_dir is None else Path(model_dir)
        self._segments = None if segment_dir is None else Path(segment_dir)
        self._lock = threading.RLock()
        self._ready = threading.Event()
        self._started = False
        self._failed = ""
        self._predictor: Any = None
        self._data: Any = None
        self._tokens: Any = None
        self._seen: OrderedDict[tuple[int, int], Any] = OrderedDict()

    # -- loading ----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the model is loaded."""
        return self._ready.is_set() and not self._failed

    @property
    def model_dir(self) -> Path:
        """The folder of the model of suitability."""
        if self._given is None:
            self._given = self.example.model_dir or default_model()
        return self._given

    @property
    def segment_dir(self) -> Path:
        """The folder of the model that segments images by text."""
        if self._segments is None:
            self._segments = self.model_dir if _segments(self.model_dir) else default_model()
        return self._segments

    def warm(self) -> None:
        """Load the model in the background; at once, and only once."""
        with self._lock:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._load_quietly, name="load-model", daemon=True).start()

    def _load_quietly(self) -> None:
        try:
            self._load()
        except AgriClipError:
            pass  # told when it is asked

    def _load(self) -> None:
        """Load the model, once; whoever asks next is told why it could not be."""
        with self._lock:
            self._started = True
            if self._predictor is not None:
                return
            if self._failed:
                raise AgriClipError(self._failed)
            try:
                from mapping.predictor import SuitabilityPredictor
                from processing.study import load_study
                from processing.study_data import StudyData

                if not (self.model_dir / "config.json").exists():
                    raise AgriClipError(
                        "There is no model behind this page, so only the maps answer; set AGRICLIP_MODEL to a model "
                        "folder."
                    )
                self._data = StudyData(load_study(self.example.folder / "study.yaml", data_root=self.example.folder))
                predictor = SuitabilityPredictor(self.model_dir)
                self._tokens = self._data.template.tokenise(predictor.processor)
                self._predictor = predictor
            except Exception as error:
                told = isinstance(error, AgriClipError)
                self._failed = (
                    str(error) if told else "The model behind this page could not be loaded; tell its owner."
                )
                raise AgriClipError(self._failed) from error
            finally:
                self._ready.set()

    @property
    def predictor(self) -> Any:
        """The ensemble."""
        self._load()
        return self._predictor

    @property
    def data(self) -> Any:
        """The example as a study's data."""
        self._load()
        return self._data

    # -- places -----------------------------------------------------------------------------------------------------

    def place_values(self, longitude: float, latitude: float) -> NDArray[np.float64]:
        """Predictors (M,) of today's climate at a place."""
        row, column = self.example.cell(longitude, latitude)
        values = self.example.predictors[:, row, column].astype(np.float64)
        if not np.isfinite(values).all():
            raise AgriClipError(f"Not every predictor is known at {longitude:.2f}, {latitude:.2f}; choose another.")
        return values

    def predict_place(self, longitude: float, latitude: float, table: ArrayLike) -> Any:
        """Ask about a place told with other numbers.

        Args:
            longitude: Degrees east.
            latitude: Degrees north.
            table: (N, M) predictors.

        Returns:
            `mapping.predictor.Answer` of N reports, with the image of today beside them.
        """
        cell = self.example.cell(longitude, latitude)
        values = np.atleast_2d(np.asarray(table, dtype=np.float64))
        with self._lock:
            predictor, data = self.predictor, self.data
            seen = self._look(cell)
            if seen is not None:
                seen = [_repeated(one, len(values)) for one in seen]
            return predictor.predict(self._tokens, data.template.values(values), seen)

    def _look(self, cell: tuple[int, int]) -> Any:
        """What the members see at a cell; the last places are kept."""
        if cell not in self._seen:
            import torch

            data, predictor = self._data, self._predictor
            seen = None
            if data.channels:
                x, y = (axis[0, cell[1]] for axis in data.grid.cell_centres(slice(cell[0], cell[0] + 1)))
                chips, valid = data.chips([x], [y])
                if valid.any():
                    pixels, mask = predictor.processor.image_processor.normalize_values(chips, data.channels, valid)
                    seen = predictor.look(
                        {
                            "pixel_values": torch.as_tensor(pixels, dtype=torch.float32).to(predictor.device),
                            "pixel_mask": torch.as_tensor(mask).bool().to(predictor.device),
                            "channels": torch.tensor([c.code() for c in data.channels], device=predictor.device),
                            "gsd": torch.tensor([data.gsd], device=predictor.device),
                        }
                    )
            self._seen[cell] = seen
            while len(self._seen) > _SEEN_PLACES:
                self._seen.popitem(last=False)
        return self._seen[cell]

    def predict_table(self, table: ArrayLike) -> Any:
        """Ask about N reports of predictors (N, M), without any image."""
        with self._lock:
            predictor, data = self.predictor, self.data
            return predictor.predict(self._tokens, data.template.values(np.asarray(table, dtype=np.float64)), None)

    def report_of(self, values: ArrayLike) -> str:
        """The report that the model reads for predictors (M,)."""
        return str(self.data.template.render(values))

    def explain(self, longitude: float, latitude: float) -> Any:
        """Why the model says what it says at a place: `mapping.explanation.Explanation` by occlusion."""
        from mapping.explain import explain_site

        cell = self.example.cell(longitude, latitude)
        with self._lock:
            predictor, data = self.predictor, self.data
            x, y = (float(axis[0, cell[1]]) for axis in data.grid.cell_centres(slice(cell[0], cell[0] + 1)))
            return explain_site(predictor, data, x, y, gradients=False, attention=False, donors=8)

    # -- texts ------------------------------------------------------------------------------------------------------

    def ask_texts(self, texts: Sequence[str]) -> list[TextAnswer]:
        """Ask about reports, as they are written.

        Raises:
            AgriClipError: A report is empty or longer than the model reads.
        """
        import torch

        for text in texts:
            check_report(text)
        answers: list[TextAnswer] = []
        with self._lock, torch.inference_mode():
            predictor = self.predictor
            for start in range(0, len(texts), _TEXT_BATCH):
                batch = list(texts[start : start + _TEXT_BATCH])
                try:
                    encoded = predictor.processor(text=batch)
                except ValueError as error:
                    found = re.search(r"has (\d+) tokens but the limit is (\d+)", str(error))
                    if found is None:
                        raise AgriClipError(f"The report cannot be read: {error}") from error
                    raise AgriClipError(
                        f"The report has {int(found[1]):,} words and signs, more than the {found[2]} that the model "
                        "reads; keep the sentences on climate and soil."
                    ) from None
                encoded = {name: value.to(predictor.device) for name, value in encoded.items()}
                answers += _members_say(predictor, encoded)
        return answers

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else asks a model meanwhile."""
        with self._lock:
            yield

    def can_segment(self) -> bool:
        """Whether there are weights that were fitted to segment images by text."""
        return _segments(self.segment_dir)


def check_report(text: str) -> None:
    """Refuse what cannot be a report before any of it is read."""
    if not text.strip():
        raise AgriClipError("There is no text; paste a report such as 'Annual precipitation 45 in; 56 F.'")
    if len(text) > MOST_CHARACTERS:
        raise AgriClipError(
            f"The report has {len(text.split()):,} words and {len(text):,} characters, more than the "
            f"{MOST_CHARACTERS:,} characters that are read; keep the sentences on climate and soil."
        )


def _segments(folder: Path) -> bool:
    """Whether the weights of a folder, read from their names alone, have a head that segments."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        names = json.loads(stream.read(min(size, 1 << 24)))
    return any(name.startswith("segmentation_head.") for name in names)


def _repeated(seen: Any, count: int) -> Any:
    """What a member sees of one place, for `count` reports."""
    from modeling_agriclip.vision_agriclip import AgriClipVisionOutput

    return AgriClipVisionOutput(**{key: value.expand(count, *value.shape[1:]) for key, value in seen.items()})


def _members_say(predictor: Any, encoded: dict[str, Any]) -> list[TextAnswer]:
    """Answers of all members to a batch of encoded reports."""
    import torch

    chances, shares = [], []
    for member in predictor.members:
        out = member.model(**encoded)
        chance = out.report_probabilities
        chances.append(chance if member.calibration is None else member.calibration.apply(chance))
        if out.share is not None:
            shares.append(out.share)
    stacked = torch.stack(chances).double().cpu().numpy()
    spread = stacked.std(axis=0, ddof=1) if len(stacked) > 1 else np.zeros(stacked.shape[1])
    share = torch.stack(shares).double().mean(dim=0).cpu().numpy() if shares else None
    found = []
    for place in range(stacked.shape[1]):
        mean = float(stacked[:, place].mean())
        if not math.isfinite(mean):
            raise AgriClipError("The model has no answer to this report; check its numbers.")
        found.append(
            TextAnswer(
                mean,
                float(spread[place]),
                float(stacked[:, place].min()),
                float(stacked[:, place].max()),
                None if share is None else float(share[place]),
            )
        )
    return found
