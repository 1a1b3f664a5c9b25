"""Screen 6: how the model came about, and how well it does on land that it had not seen."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from processing.errors import AgriClipError
from spaces_demo import snippets
from spaces_demo.page import Page, message, snippet, table_html

__all__ = ["build", "comparison_html", "find_results", "results_html"]

_METRICS = {"ap": ("average precision", 1), "auc": ("AUC", 1), "brier": ("Brier score", -1),
            "log_loss": ("log loss", -1), "ece": ("calibration error", -1)}  # fmt: skip


def find_results(folder: Path) -> Path | None:
    """`results.json` of an evaluation in the model folder or beside it."""
    for place in (folder, folder.parent, folder.parent / "evaluation"):
        if (place / "results.json").is_file():
            return place / "results.json"
    return None


def results_html(file: Path) -> str:
    """The tables of a `results.json`, a task, dataset and split each."""
    from evaluation.results import metric_of, read_results

    scores, _ = read_results(file)
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for score in scores:
        if score.against is None:
            groups.setdefault((score.task, score.dataset, score.split), []).append(score)
    html = ""
    for (task, dataset, split), found in groups.items():
        metrics = list(dict.fromkeys(score.metric for score in found))[:7]
        cells = {(score.model, score.metric): score.text for score in found}
        models = list(dict.fromkeys(score.model for score in found))
        rows = [[model, *(cells.get((model, metric), "") for metric in metrics)] for model in models]
        html += f"<h5>{escape(task)}: {escape(dataset)}, {escape(split)}</h5>"
        html += table_html(["model", *(metric_of(metric).title for metric in metrics)], rows, "ac-numbers")
    return html


def comparison_html(rows: list[dict[str, Any]]) -> str:
    """The model and the baselines on the same held-out blocks; the best of each column is bold."""
    if not rows:
        return message("No scores lie beside this model.", "note")
    best = {
        key: (max if sign > 0 else min)((row for row in rows if key in row), key=lambda row, k=key: row[k])[key]
        for key, (_, sign) in _METRICS.items()
        if any(key in row for row in rows)
    }
    head = "".join(f"<th>{_METRICS[key][0]}</th>" for key in best)
    body = ""
    for row in rows:
        cells = "".join(
            f"<td>{'<b>' if row.get(key) == value else ''}{row.get(key, float('nan')):.3f}</td>"
            for key, value in best.items()
        )
        body += f"<tr><th>{escape(str(row['model']))}</th>{cells}</tr>"
    return (
        '<div class="ac-scroll"><table class="ac-table ac-numbers"><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _facts(page: Page) -> list[list[str]]:
    """How the model was made, as far as its folder tells."""
    summary, folder = page.example.summary, page.engine.model_dir
    training = summary.get("training", {})
    facts = [
        ["what a map shows", page.example.quantity],
        ["labelled sites", f"{training.get('sites', 0):,}, {training.get('with_crop', 0):,} with the crop"],
        ["predictors", f"{len(page.example.variables)}, told to the model as a report"],
        ["members of the ensemble", str(summary.get("members", 1))],
        ["scored on", "blocks of land that were left out, never random pixels"],
        ["model of the maps", str(summary.get("model_sha256", ""))[:16]],
    ]
    file = folder / "training_summary.json"
    if file.is_file():
        told = json.loads(file.read_text(encoding="utf-8"))
        for key, title in (("parameters", "parameters"), ("epochs", "passes over the data"), ("seconds", "seconds")):
            if isinstance(told.get(key), int | float):
                facts.append([title, f"{told[key]:,.0f}"])
    return facts


def _results(file: Path) -> str:
    try:
        return f"<div class='ac-report'><h4>Evaluation of the model behind this page</h4>{results_html(file)}</div>"
    except (AgriClipError, KeyError, TypeError, OSError):
        return message("The results beside the model cannot be read.", "note")


def build(page: Page) -> None:
    """Lay the screen out."""
    import gradio as gr

    example = page.example
    gr.HTML(
        f"<div class='ac-report'><p class='ac-lead'>{escape(example.summary.get('description') or '')}</p>"
        f"<h4>On unseen blocks of land</h4>{comparison_html(example.summary.get('comparison', []))}</div>",
        elem_id="evaluation-comparison",
        apply_default_css=False,
    )
    file = find_results(page.engine.model_dir)
    if file is not None:
        gr.HTML(_results(file), elem_id="evaluation-results", apply_default_css=False)
    facts = table_html(["", ""], _facts(page), "ac-facts")
    gr.HTML(
        f"<div class='ac-report'><h4>How it was made</h4>{facts}<h4>What not to expect</h4><ul>"
        "<li>Suitable is not sown: price, insurance and habit decide what is planted.</li>"
        "<li>The image of today knows where the crop grows today; the answer without it is given beside.</li>"
        "<li>Far outside the climate of the fit a probability is a guess; the map hatches that land.</li></ul></div>",
        apply_default_css=False,
    )
    snippet(snippets.for_training(page.made))
