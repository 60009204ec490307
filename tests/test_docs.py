"""What the documentation shows runs as shown."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bench
import pyclattn
import pyclattn_export
from pyclattn.graph.serial import save_program
from tests.graph.test_model import attention_model

ROOT = Path(__file__).parent.parent
NEED_TORCH = ("pyclattn_export.from_torch", "pyclattn_export.state", "pyclattn_export.torch_layers")


def modules_with_examples(package):
    """Dotted names of all modules of a package that show a session; those that need torch are marked."""
    folder = Path(package.__file__).parent  # installed, perhaps
    for path in sorted(folder.rglob("*.py")):
        if ">>>" in path.read_text() and "examples" not in path.relative_to(folder).parts:
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package.__name__, *parts)).removesuffix(".__init__")
            marks = [pytest.mark.torch] if name.startswith(NEED_TORCH) else []
            yield pytest.param(name, id=name, marks=marks)


FUNCTIONS = [name for name in pyclattn.__all__ if inspect.isfunction(getattr(pyclattn, name))]
# What takes arrays has an example to run; what takes a file is shown in docs/.
PUBLIC = [name for name in FUNCTIONS if getattr(pyclattn, name).__module__.startswith("pyclattn.functional")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_an_example_that_runs(name):
    function = getattr(pyclattn, name)
    found = [test for test in doctest.DocTestFinder(recurse=False).find(function, name) if test.examples]
    assert found, f"{name} has no example"
    for test in found:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_name_every_argument(name):
    """Each argument stands under Parameters, and the sections a reader looks for are there."""
    function = getattr(pyclattn, name)
    text = inspect.getdoc(function)
    sections = re.split(r"\n(?=\w+\n-{3,}\n)", text)
    parameters = next(part for part in sections if part.startswith("Parameters\n"))
    listed = set(re.findall(r"\w+", " ".join(re.findall(r"^(\w[^:\n]*)", parameters, re.MULTILINE))))
    assert set(inspect.signature(function).parameters) <= listed
    assert "Returns\n" in text


@pytest.mark.parametrize(
    "module", [name for package in (pyclattn, pyclattn_export, bench) for name in modules_with_examples(package)]
)
def test_examples_in_modules(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where examples may write
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_is_a_readme():
    assert python_blocks(ROOT / "README.md"), "README.md has no python block"


def python_blocks(path, fence="python"):
    """The ```python blocks of a Markdown file, each with the number of its first line."""
    text = path.read_text()
    return [
        (text[: match.start(1)].count("\n") + 1, match[1])
        for match in re.finditer(rf"^```{fence}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))] if path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, as a reader would paste them, in an empty folder.

    A block with `>>>` is a session whose answers must be those shown. There is a model with two attentions in the
    folder, for pages that load one.
    """
    monkeypatch.chdir(tmp_path)
    if page.name in ("start.md", "choosing.md", "embedding.md"):
        save_program(tmp_path / "model.safetensors", attention_model())
    names = {"__name__": "page"}
    for line, block in python_blocks(page):
        if block.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(block, names, page.name, str(page), line - 1)
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0
            names.update(test.globs)
        else:
            exec(compile("\n" * (line - 1) + block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fragments_are_python(page):
    """What needs a file or a network of the reader's is fenced ```py: it is not run, and still has to be Python."""
    for line, block in python_blocks(page, "py"):
        compile("\n" * (line - 1) + block, str(page), "exec")


def test_every_page_is_in_the_navigation():
    """Each once; and nothing else is, but what exists."""
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r"^ +- (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.md")
    )


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(r"members: \[(.*)\]", page) + re.findall(r"^ {8}- (\w+)$", page, re.MULTILINE)
    names = [name for text in listed for name in text.split(", ")]
    assert sorted(names) == sorted(pyclattn.__all__)
