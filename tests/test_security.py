"""What SECURITY.md promises: no code from data, servers on loopback, and words that stay words on a page."""

from __future__ import annotations

import ast
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbclient
import nbformat
import pytest

from kdcdiff.book import explorer, staging
from kdcdiff.book.tables import table
from kdcdiff.book.toc import Page
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.export import model_card
from kdcdiff.models.variants import Variant

from .imports import REPO, imports_of, python_files

MARKUP = "<script>alert(1)</script>"
HOSTILE = [
    MARKUP,
    '"><img src=x onerror=alert(1)>',
    "a|b\n\n# heading",
    "```{raw} html\n<b>x</b>\n```",
    "</td></table>",
]
RUNS_CODE = {"eval", "exec", "compile", "__import__"}  # builtins
UNSAFE = {  # (what it is called on, its name)
    ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system"), ("numpy", "load"), ("np", "load"),
    ("pickle", "load"), ("pickle", "loads"), ("joblib", "load"), ("shutil", "unpack_archive"),
}  # fmt: skip
SOURCES = [path for path in python_files("kdcdiff", "tools", "notebooks") if path.suffix == ".py"]


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_nothing_is_unpickled_and_no_data_is_run():
    found = []
    for path in SOURCES:
        found += [f"{path}: imports {e.module}" for e in imports_of(path) if e.top in ("pickle", "dill", "joblib")]
        for call in calls(path):
            f = call.func
            pair = (ast.unparse(f.value), f.attr) if isinstance(f, ast.Attribute) else None
            if pair in UNSAFE or (isinstance(f, ast.Name) and f.id in RUNS_CODE):
                found.append(f"{path.relative_to(REPO)}:{call.lineno}: {ast.unparse(call.func)}")
            for word in call.keywords:
                value = word.value.value if isinstance(word.value, ast.Constant) else None
                if (word.arg, value) in (("trust_remote_code", True), ("shell", True), ("use_safetensors", False)):
                    found.append(f"{path.relative_to(REPO)}:{call.lineno}: {word.arg}")
    assert found == []


def test_pretrained_networks_are_read_from_safetensors_alone():
    """Every `from_pretrained` of a network says so; tokenizers, processors and schedulers have no weights."""
    plain = ("Tokenizer", "Processor", "Scheduler")
    for path in SOURCES:
        for call in calls(path):
            name = ast.unparse(call.func)
            if name.endswith(".from_pretrained") and not name.removesuffix(".from_pretrained").endswith(plain):
                words = {w.arg: w.value.value for w in call.keywords if isinstance(w.value, ast.Constant)}
                assert words.get("use_safetensors") is True, f"{path.relative_to(REPO)}:{call.lineno}: {name}"


def test_servers_listen_on_loopback_only():
    serve = next(line for line in (REPO / "Makefile").read_text().splitlines() if "http.server" in line)
    assert "--bind 127.0.0.1" in serve
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and "127.0.0.1" in server.stdout.readline()
        server.terminate()
    kernel = nbclient.NotebookClient(nbformat.v4.new_notebook()).create_kernel_manager()
    assert kernel.ip in ("127.0.0.1", "localhost") and kernel.transport == "tcp"


class Tags(HTMLParser):
    """The tags of a piece of HTML, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("word", HOSTILE)
def test_a_table_shows_words_as_words(word):
    shown = Tags(table([{"class": word, word: 1}], caption=word)._repr_html_())
    assert set(shown.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert shown.words.count(word) == 3


@pytest.mark.parametrize("word", HOSTILE)
def test_the_box_at_a_chapters_end_shows_a_folders_name_as_a_name(word):
    values = {"profile": "mini", "dataset": f"/data/{word}", "seed": 0, "teacher": word}
    box = staging._cost_box(Page(Path("notebooks/01-a.ipynb")), values, 1.0, 2**30)
    prose, _, command = box.partition("To run it again:")
    assert "<" not in prose and "`{" not in prose.replace("```{admonition}", "")
    assert command.strip().count("\n") == 1, "one command, and the fence that closes the box"


@pytest.mark.parametrize("word", HOSTILE)
def test_a_model_card_shows_words_as_words(word):
    cut = Variant("mine", word, fewer_pairs=1)
    card = model_card(CONFIGS["sd-1"], cut, word, "float32", {"data": word})
    assert "<script" not in card and "<img" not in card and "<b>" not in card and "\n# heading" not in card


def test_the_explorers_data_cannot_end_its_script():
    assert explorer.as_data({"name": "</script><script>"}).count("<") == 0
