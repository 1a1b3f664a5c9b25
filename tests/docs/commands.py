"""Can a line of a shell be typed so? Programs are asked for their own options and commands; nothing is run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

from tests.docs.pages import ROOT

_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


def lines_of(text: str) -> list[list[str]]:
    """Commands of a block as words: comments away, continued lines joined, `&&` parted."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command = words[:end]
            while command and _ASSIGNMENT.fullmatch(command[0]):
                command = command[1:]
            if command:
                found.append(command)
            words = words[end + 1 :]
    return found


def check_command(words: list[str]) -> None:
    """Raise with what is wrong, where a command cannot be typed so."""
    program = words[0]
    if program not in _CHECKS:
        raise AssertionError(f"nothing is known of the program '{program}'")
    _CHECKS[program](words[1:])


def agriclip(arguments: list[str], lenient: bool = False) -> None:
    """Parse arguments as the command line would.

    Args:
        arguments: Without the name of the program.
        lenient: Only the names of commands and options, as a sentence mentions them.
    """
    from typer.main import get_command

    import agriclip_cli

    command: Any = get_command(agriclip_cli.app)
    context: Any = command.make_context("agriclip", [], resilient_parsing=True)
    rest = list(arguments)
    while hasattr(command, "commands"):
        known = command.commands
        if not rest or rest[0].startswith("-"):
            break
        name = rest.pop(0)
        assert name in known, f"there is no command '{name}'; there are {sorted(known)}"
        command = known[name]
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    options = {text for option in command.params for text in (*option.opts, *option.secondary_opts)}
    options |= {"--help", "-h", "--version", "--debug"}
    for word in rest:
        if re.match(r"--?[A-Za-z]", word):
            assert word.partition("=")[0] in options, f"'{context.command_path}' has no option '{word}'"
    if lenient or hasattr(command, "commands") or {"--help", "-h"} & set(rest):
        return
    try:
        command.make_context(context.info_name, rest)
    except Exception as error:  # click's own, by whatever name typer carries it
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        raise AssertionError(f"{context.command_path} {' '.join(arguments)}: {said}") from error


def _make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M))
    wrong = [word for word in arguments if "=" not in word and word not in targets]
    assert not wrong, f"the Makefile has no target {wrong}; it has {sorted(targets)}"


def _pip(arguments: list[str]) -> None:
    import tomllib

    assert arguments and arguments[0] == "install", arguments
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in arguments[1:]:
        ours = re.fullmatch(r"(?:agriclip|\.)\[([\w,-]+)\]", word)
        for extra in ours[1].split(",") if ours else ():
            assert extra in extras, f"there is no extra '{extra}'; there are {sorted(extras)}"


def _python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        module, rest = arguments[1], arguments[2:]
        if module == "agriclip_cli":
            agriclip(rest)
            return
        script = ROOT / f"{module.replace('.', '/')}.py"
    else:
        script, rest = ROOT / arguments[0], arguments[1:]
    assert script.is_file(), f"there is no {script}"
    # Scripts parse when they run; that an option is spelt in them is seen without running them.
    text = "".join(path.read_text() for path in script.parent.glob(f"{script.stem}*.py"))
    for word in rest:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in text, f"{script.name} has no option '{word}'"


def _launcher(arguments: list[str]) -> None:
    """`torchrun OPTIONS -m agriclip_cli ...` and `accelerate launch OPTIONS -m agriclip_cli ...`."""
    end = arguments.index("-m")
    if arguments[0] == "launch":
        from accelerate.commands.launch import launch_command_parser

        told = launch_command_parser().parse_args([*arguments[1:end], "script"])
        assert told.config_file is None or (ROOT / told.config_file).is_file(), told.config_file
    else:
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args([*arguments[:end], "script"])
    _python(arguments[end:])


def _hub(arguments: list[str]) -> None:
    from huggingface_hub.cli.hf import app
    from typer.main import get_command

    # The application of some versions is typer's, of others it is a command already.
    command: Any = app if hasattr(app, "list_commands") else get_command(app)
    for word in arguments:
        if not hasattr(command, "list_commands"):
            break
        # Groups load what they hold when they are asked; `None` is a context that they do not look at.
        known = {name: names for names in command.list_commands(None) for name in re.split(r"\s*\|\s*", names)}
        assert word in known, f"`hf` has no command '{word}'"
        command = command.get_command(None, known[word])


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "agriclip": agriclip,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "torchrun": _launcher,
    "accelerate": _launcher,
    "hf": _hub,
    "cd": lambda arguments: None,
}
