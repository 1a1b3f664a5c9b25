"""AgriCLIP's Space: `python spaces_demo/app.py`, or `agriclip demo-space`.

Where double-cropped soybean can be grown, today and in scenarios: seven screens on a precomputed example, with the
model behind them for places, reports and rasters of one's own. The page opens without the model, which is loaded in
the background. The example is that of a real study where one was built, else an invented landscape, which says so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
# As a Space the file lies beside the packages, in a checkout inside one of them.
_ROOT = _HERE if (_HERE / "spaces_demo").is_dir() else _HERE.parent
if str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from processing.errors import AgriClipError  # noqa: E402
from spaces_demo.engine import Engine  # noqa: E402
from spaces_demo.example import Example, default_example  # noqa: E402
from spaces_demo.planting import Planting  # noqa: E402

TITLE = "AgriCLIP: where can soybean follow wheat?"
#: Events that wait at most; the next visitor is told to come back.
MOST_WAITING = 48
MOST_UPLOAD = "200mb"
#: Below the header where the landscape exists nowhere.
INVENTED = (
    '<p class="ac-invented">This landscape is invented: its places, climate and crop exist nowhere. Put your own '
    "study here: <code>python -m spaces_demo.build_example OUTPUT --data DATA</code></p>"
)
_PACKAGE = Path(sys.modules["spaces_demo"].__file__ or _HERE).resolve().parent


def build_app(example_dir: str | Path | None = None, model_dir: str | Path | None = None) -> Any:
    """Build the page.

    Args:
        example_dir: Folder of `spaces_demo.build_example`; if None `default_example()`.
        model_dir: Model of suitability; if None the example's own, else `AGRICLIP_MODEL` or `agriclip/`.

    Returns:
        `gr.Blocks` with its queue; its `page` holds example and model.

    Raises:
        AgriClipError: There is no example.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise AgriClipError("The page needs Gradio: pip install 'agriclip[demo]'.") from error
    from spaces_demo.api import add_endpoints
    from spaces_demo.page import Page
    from spaces_demo.screens import evaluation, explore, export, my_data, point, text, what_if
    from spaces_demo.sessions import OLDEST, Session, remove_old

    example = Example(example_dir or default_example())
    page = Page(example, Engine(example, model_dir), Planting(example))
    title = "AgriCLIP: an invented landscape" if example.invented else TITLE
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, OLDEST), fill_width=False) as demo:
        page.session = gr.State(Session(), time_to_live=OLDEST, delete_callback=lambda session: session.remove())
        page.place = gr.State(page.start)
        gr.HTML(
            '<header class="ac-header"><h1>Where can soybean follow wheat?</h1>'
            f"<p>{_escaped(example.summary['title'])}: a map to click, today and in later climates.</p>"
            f"{INVENTED if example.invented else ''}</header>",
            apply_default_css=False,
        )
        with gr.Tabs(elem_id="screens"):
            with gr.Tab("Explore", id="explore"):
                explore.build(page)
            with gr.Tab("Point report", id="point") as point_tab:
                point.build(page, point_tab)
            with gr.Tab("What if", id="what-if") as what_if_tab:
                what_if.build(page, what_if_tab)
            with gr.Tab("My data", id="my-data"):
                my_data.build(page)
            with gr.Tab("Text", id="text"):
                text.build(page)
            with gr.Tab("Evaluation", id="evaluation"):
                evaluation.build(page)
            with gr.Tab("Export", id="export"):
                export.build(page)
        demo.endpoints = add_endpoints(page)
    demo.page = page
    remove_old()
    return demo.queue(max_size=MOST_WAITING, default_concurrency_limit=4)


def launch_options() -> dict[str, Any]:
    """Options of `launch`: looks, limits, and what may not be fetched."""
    import gradio as gr

    from spaces_demo.map_widget import STATIC, page_head

    plain = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size="md",
        font=plain,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return {
        "theme": theme,
        "css": (STATIC / "space.css").read_text(encoding="utf-8"),
        "head": page_head(),
        "max_file_size": MOST_UPLOAD,
        "show_error": True,
        "footer_links": ["api"],
        "ssr_mode": False,
        "blocked_paths": [str(_PACKAGE)],
    }


def serve(demo: Any, *, port: int | None = None, share: bool = False, mcp: bool = False, wait: bool = True) -> Any:
    """Open the page to visitors, then load the model behind it.

    Args:
        demo: Of `build_app`.
        port: Port; the first free one from 7860 if None.
        share: Also a public address, by Gradio's tunnel.
        mcp: Also serve the endpoints as MCP tools; needs the package mcp.
        wait: Return only when the server ends.

    Returns:
        Gradio's (app, local address, public address).

    Raises:
        AgriClipError: The tools were asked for and cannot be served.
    """
    if mcp and importlib.util.find_spec("mcp") is None:
        raise AgriClipError("MCP tools need the package mcp: pip install 'agriclip[mcp]'.")
    options = launch_options()
    opened = demo.launch(
        server_port=port, share=share, mcp_server=mcp, prevent_thread_lock=True, quiet=True, **options
    )
    if mcp:
        from spaces_demo.api import answer_in_json

        # Gradio goes on without the tools where they fail, and a quiet launch does not tell of it.
        if demo.mcp_server_obj is None:
            demo.close()
            raise AgriClipError(f"The MCP tools cannot be served: {demo.mcp_error}.")
        answer_in_json(demo.mcp_server_obj)
    # A moment later, so that the first page is not slowed down by it.
    timer = threading.Timer(2.0, demo.page.engine.warm)
    timer.daemon = True
    timer.start()
    if wait:
        demo.block_thread()
    return opened


def _escaped(text: str) -> str:
    from html import escape

    return escape(str(text))


def main() -> None:
    """Serve the page, as a Space does."""
    try:
        serve(build_app(), mcp=os.environ.get("AGRICLIP_MCP", "") not in ("", "0"))
    except AgriClipError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
