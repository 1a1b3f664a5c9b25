"""`python benchmarks/space.py`: visitors of the Space for some minutes; errors, waiting times, memory over time.

The page is served in a process of its own on this machine and asked over the loopback address only, by a bounded
number of visitors for a bounded time. Each visitor clicks places, reads areas, asks the model about reports and
sliders, and now and then uploads a table or exports maps.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

_ROOT = Path(__file__).resolve().parent.parent
_SERVE = (
    "import sys; sys.path.insert(0, {root!r})\n"
    "from spaces_demo.app import build_app, serve\n"
    "demo = build_app(None, {model!r})\n"
    "demo.page.engine.warm()\n"
    "print(serve(demo, wait=False)[1], flush=True)\n"
    "demo.block_thread()\n"
)


def visit(
    address: str,
    until: float,
    seed: int,
    box: tuple[float, float, float, float],
    waits: dict[str, list[float]],
    faults: Counter[str],
    file: str,
) -> None:
    """One visitor: asks, reads for a moment, asks again."""
    from gradio_client import Client, handle_file

    chance = random.Random(seed)
    client = Client(address, verbose=False, httpx_kwargs={"timeout": 120})
    while time.monotonic() < until:
        place = (chance.uniform(box[0], box[2]), chance.uniform(box[1], box[3]))
        kinds: list[tuple[str, tuple[Any, ...]]] = [
            ("/point_report", place),
            ("/point_report", place),
            ("/areas", ("present", round(chance.uniform(0.2, 0.8), 2))),
            ("/planting_window", (*place, "present")),
            ("/predict_report", (f"Annual precipitation {chance.randint(20, 60)} in; annual mean 14 degC.",)),
            ("/what_if", (*place, chance.choice([0, 1, 2, 3]), 0, 0, 0)),
            ("/check_file", (handle_file(file),)),
            ("/export_maps", (["present"], ["probability"], 0.5)),
        ]
        name, given = chance.choice(kinds)
        start = time.monotonic()
        try:
            client.predict(*given, api_name=name)
        except Exception as error:
            text = str(error)
            # A click into the sea is answered with a sentence, which is no fault; an invented land has no months.
            if not any(words in text for words in ("no data at", "outside the map", "no climate data", "no monthly")):
                faults[text[:120]] += 1
        waits.setdefault(name, []).append(time.monotonic() - start)
        time.sleep(chance.uniform(0.5, 2.5))


def main(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model folder. [default: the example's, or agriclip/]")
    ] = None,
    visitors: Annotated[int, typer.Option(min=1, max=50, help="Visitors at once.")] = 20,
    seconds: Annotated[int, typer.Option(min=10, max=600, help="How long they stay.")] = 120,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON with the figures.")] = None,
) -> None:
    """Serve the page and let visitors in."""
    import psutil

    sys.path.insert(0, str(_ROOT))
    from spaces_demo.example import Example, default_example

    # West, south, east and north of what the page opens on, in degrees.
    box = Example(default_example()).grid.bounds_in("EPSG:4326")

    code = _SERVE.format(root=str(_ROOT), model=None if model is None else str(model.resolve()))
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        watched = psutil.Process(server.pid)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "places.csv"
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            file.write_text("lon,lat\n{:.3f},{:.3f}\n".format(*middle))
            time.sleep(10)  # the model is being loaded
            waits: dict[str, list[float]] = {}
            faults: Counter[str] = Counter()
            start = time.monotonic()
            threads = [
                threading.Thread(target=visit, args=(address, start + seconds, seed, box, waits, faults, str(file)))
                for seed in range(visitors)
            ]
            for thread in threads:
                thread.start()
            memory = []
            while any(thread.is_alive() for thread in threads):
                memory.append((round(time.monotonic() - start), watched.memory_info().rss >> 20))
                time.sleep(max(2.0, seconds / 40))
            for thread in threads:
                thread.join()
        told = {
            "visitors": visitors,
            "seconds": seconds,
            "requests": sum(map(len, waits.values())),
            "faults": dict(faults),
            "median_seconds": {name: round(sorted(took)[len(took) // 2], 2) for name, took in sorted(waits.items())},
            "slowest_seconds": {name: round(max(took), 2) for name, took in sorted(waits.items())},
            "memory_mib": memory,
        }
        typer.echo(json.dumps(told, indent=1))
        if output is not None:
            output.write_text(json.dumps(told, indent=1) + "\n")
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    typer.run(main)
