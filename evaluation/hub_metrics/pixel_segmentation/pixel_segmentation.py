"""Scores of maps of classes for the `evaluate` library; needs nothing but `evaluate` and NumPy.

All pixels of all images are counted in one confusion matrix: a score is of the area mapped and not a mean of images.
"""

import math

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
Accuracy, mean intersection over union and intersection over union of each class, from maps of predicted and of true
classes. The pixels of all images are pooled. A pixel whose true class is `ignore_index` does not count; a class that
occurs neither in the truth nor in the prediction has no score (NaN) and is left out of the mean.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of 2-D or 1-D arrays): Predicted class of each pixel, 0 to num_classes - 1.
    references (list of 2-D or 1-D arrays): True class of each pixel, same shapes.
    num_classes (int): Number of classes.
    ignore_index (int): True class of pixels that do not count. Default 255.
    class_names (list of str, optional): Names that the scores of classes are reported under.
Returns:
    dict: accuracy, mean_iou, per_class_iou (class -> IoU), pixels (number that counted).
Examples:
    >>> metric = evaluate.load("evaluation/hub_metrics/pixel_segmentation")
    >>> scores = metric.compute(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 255]]], num_classes=2)
    >>> round(scores["accuracy"], 3), scores["mean_iou"]
    (0.667, 0.5)
"""

_CITATION = """
@article{everingham2015, author = {Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher
  K. I. and Winn, John and Zisserman, Andrew}, title = {The Pascal visual object classes challenge: a retrospective},
  journal = {International Journal of Computer Vision}, volume = {111}, pages = {98--136}, year = {2015}}
"""


def _features(dimensions: int) -> datasets.Features:
    feature = datasets.Value("int64")
    for _ in range(dimensions):
        feature = datasets.Sequence(feature)
    return datasets.Features({"predictions": feature, "references": feature})


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PixelSegmentation(evaluate.Metric):
    """Accuracy and intersection over union of maps of classes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=[_features(2), _features(1)],
            reference_urls=["https://doi.org/10.1007/s11263-014-0733-5"],
        )

    def _compute(
        self,
        predictions: list,
        references: list,
        num_classes: int,
        ignore_index: int = 255,
        class_names: list[str] | None = None,
    ) -> dict:
        names = [str(k) for k in range(num_classes)] if class_names is None else list(class_names)
        if len(names) != num_classes:
            raise ValueError(f"There are {len(names)} class names for {num_classes} classes; give one of each.")
        # Row: true class, column: predicted class.
        confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
        for number, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            p, t = np.asarray(predicted), np.asarray(true)
            if p.shape != t.shape:
                raise ValueError(f"Image {number} has predictions of shape {p.shape} but references of {t.shape}.")
            counts = t != ignore_index
            p, t = p[counts], t[counts]
            if t.size and not (0 <= min(p.min(), t.min()) and max(p.max(), t.max()) < num_classes):
                raise ValueError(
                    f"Image {number} holds a class outside 0 to {num_classes - 1}; set `num_classes` or "
                    "`ignore_index`."
                )
            confusion += np.bincount(t * num_classes + p, minlength=num_classes**2).reshape(num_classes, num_classes)
        hits, total = np.diag(confusion), int(confusion.sum())
        union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
        iou = [float(h / u) if u else math.nan for h, u in zip(hits, union, strict=True)]
        known = [value for value in iou if not math.isnan(value)]
        return {
            "accuracy": float(hits.sum() / total) if total else math.nan,
            "mean_iou": float(np.mean(known)) if known else math.nan,
            "per_class_iou": dict(zip(names, iou, strict=True)),
            "pixels": total,
        }
