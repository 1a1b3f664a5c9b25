"""`agriclip demo-space`: the page of the Space on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo_space"]


def demo_space(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port. [default: the first free one from 7860]")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Model folder. [default: the example's own, AGRICLIP_MODEL, or agriclip/]"),
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `python -m spaces_demo.build_example`. [default: spaces_demo/example if it was built, "
            "else the invented landscape in spaces_demo/virtual]"
        ),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also a public address for three days.")] = False,
    mcp: Annotated[bool, typer.Option("--mcp", help="Also serve the endpoints as MCP tools.")] = False,
) -> None:
    """Open the demonstration page: maps to click, a report to edit, rasters of your own."""
    from processing.errors import AgriClipError
    from spaces_demo.app import build_app, serve

    if model is not None and not (model / "config.json").is_file():
        raise AgriClipError(f"There is no model in '{model}'; give a folder that `agriclip fit` has written.")
    demo = build_app(example, model)
    _, address, public = serve(demo, port=port, share=share, mcp=mcp, wait=False)
    typer.echo(f"Open {address}" + (f" or {public}" if public else "") + " (Ctrl-C ends it).")
    demo.block_thread()
