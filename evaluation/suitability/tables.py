"""The tables of an evaluation: Markdown for the repository, a table and sentences for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation.results import Score, card_section, differences_markdown, metric_of, scores_markdown
from evaluation.suitability.climate_models import climate_markdown
from evaluation.suitability.scoring import HEADLINE, lead_sentence

if TYPE_CHECKING:
    from rich.console import Console

    from evaluation.suitability.evaluate import Evaluation

__all__ = ["print_evaluation", "results_markdown"]


def results_markdown(result: Evaluation, about: dict[str, Any]) -> str:
    """All tables, for people.

    Args:
        result: The evaluation.
        about: What it was taken with, as in `results.json`.
    """
    lines = [f"# Suitability: {about['study']}, {result.split}", ""]
    places, presences = result.details["places"], result.details["presences"]
    lines.append(
        f"{places:,} places, {presences:,} of them with the crop, in {result.details['blocks']} blocks. Intervals are "
        f"{about['interval_level']:.0%} of {about['draws']:,} draws of whole blocks. A calibration error is "
        "never below 0, so resampling raises it: its intervals lie too high."
    )
    lines += ["", *(f"**{note}**" for note in result.notes), ""]
    if verdict := result.details["leakage"].get("verdict"):
        lines += [verdict, ""]
    lines += [lead_sentence(result.main), "", "## Models", "", scores_markdown(result.main, HEADLINE)]
    if any(score.against for score in result.main):
        lines += ["## Leads", "", differences_markdown(result.main, HEADLINE)]
    more = [score for score in result.main if score.metric not in HEADLINE]
    lines += [card_section(more, "Other scores")]
    others = [score for score in result.scores if score.split != result.split]
    regional = {score.split for score in others if score.metric == "area_bias"}
    lines += ["## Regions", "", _regions([s for s in others if s.split in regional], result.split)] if regional else []
    for split in dict.fromkeys(score.split for score in others if score.split not in regional):
        rows = [score for score in others if score.split == split]
        lines += [f"## {split} (n = {max(s.n for s in rows):,})", "", scores_markdown(rows)]
        if any(score.against for score in rows):
            lines.append(differences_markdown(rows))
    undone = result.details["baselines_not_run"] | result.details.get("ablations_not_possible", {})
    lines += [f"- not done: {what}: {why}" for what, why in undone.items()]
    if result.climates is not None:
        lines += ["", "## Other climate models", "", climate_markdown(result.climates)]
        lines += [f"- {sentence}" for sentence in result.climates.found.left_out]
    return "\n".join(lines) + "\n"


def _regions(scores: Sequence[Score], split: str) -> str:
    """One row a region."""
    metrics = list(dict.fromkeys(score.metric for score in scores))
    lines = ["| region | places | " + " | ".join(metric_of(metric).title for metric in metrics) + " |"]
    lines.append("| --- |" + " ---: |" * (len(metrics) + 1))
    for region in dict.fromkeys(score.split for score in scores):
        cells = {score.metric: score for score in scores if score.split == region}
        texts = [cells[metric].text if metric in cells else "" for metric in metrics]
        places = next(iter(cells.values())).n
        lines.append(f"| {region.removeprefix(split + ', ')} | {places:,} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def print_evaluation(result: Evaluation, console: Console) -> None:
    """Shows the headline, the lead, and where everything lies.

    Args:
        result: The evaluation.
        console: The terminal.
    """
    from rich.table import Table

    plain = [score for score in result.main if score.against is None and score.metric in HEADLINE]
    table = Table(title=f"{result.split}: {result.details['places']:,} places", title_justify="left")
    table.add_column("model")
    for metric in HEADLINE:
        table.add_column(metric_of(metric).title, justify="right")
    cells = {(score.model, score.metric): score.text for score in plain}
    for model in dict.fromkeys(score.model for score in plain):
        table.add_row(model, *(cells.get((model, metric), "") for metric in HEADLINE))
    console.print(table)
    for note in result.notes:
        console.print(f"[bold]{note}[/]")
    for metric in ("ap", "brier"):
        if sentence := lead_sentence(result.main, metric):
            console.print(sentence, markup=False)
    if result.climates is not None:
        for order in result.climates.orders:
            answer = {None: "cannot be told", True: "in order", False: "not in order"}[order.ordered]
            image = "with" if order.with_image else "without"
            console.print(f"{order.climate_model} {order.period}, {image} the image: centroids {answer}", markup=False)
    for name, path in result.files.items():
        console.print(f"{name:<14} {path}", markup=False, highlight=False)
