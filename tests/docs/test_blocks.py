"""Every command, every Python block and every key of a study on README.md and in the book is one that exists."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import TypeAdapter

from processing.study import Study
from tests.docs.commands import agriclip, check_command, lines_of
from tests.docs.pages import all_blocks, blocks, pages

_INLINE = re.compile(r"(?<!`)`(agriclip [^`]+)`(?!`)")
SHELL, PYTHON, YAML = all_blocks("sh", "bash", "shell", "console"), all_blocks("python", "py"), all_blocks("yaml")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_can_be_typed(block):
    commands = lines_of(block.text)
    assert commands, "the block holds no command"
    for words in commands:
        check_command(words)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_commands_inside_sentences_exist(page):
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        text = text.replace(block.text, "\n")
    for command in _INLINE.findall(text):
        agriclip(command.replace("|", " ").split()[1:], lenient=True)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_and_imports_what_exists(block):
    import ast
    import importlib.util

    for node in ast.walk(ast.parse(block.text, str(block))):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        place = importlib.util.find_spec(node.module)
        assert place is not None, f"there is no module {node.module}"
        if node.module.split(".")[0] in {"evaluation", "mapping", "modeling_agriclip", "processing", "training"}:
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("block", YAML, ids=str)
def test_keys_of_a_study_are_accepted(block):
    content = yaml.safe_load(block.text)
    if not isinstance(content, dict):  # a list of sources
        assert all({"files", "title"} <= set(row) for row in content)
        return
    if "name" in content and "grid" in content:
        Study.model_validate(content)
        return
    for key, value in content.items():
        assert key in Study.model_fields, f"a study has no key '{key}'"
        TypeAdapter(Study.model_fields[key].annotation).validate_python(value)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("agriclip fitt STUDY", "no command 'fitt'"),
        ("agriclip fit STUDY --epoch 3", "no option '--epoch'"),
        ("agriclip fit", "Missing argument"),
        ("agriclip fit STUDY --epochs many", "valid integer"),
        ("make nothing", "no target"),
        ("pip install agriclip[mapps]", "no extra 'mapps'"),
        ("python benchmarks/map.py --nonsense", "no option"),
        ("python benchmarks/none.py", "there is no"),
        ("torchrun --nproc-per-node 2 -m agriclip_cli mapp STUDY", "no command 'mapp'"),
        ("hf nonsense", "no command 'nonsense'"),
        ("rm -rf .", "nothing is known"),
    ],
)
def test_the_checks_can_fail(command, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        for words in lines_of(command):
            check_command(words)
