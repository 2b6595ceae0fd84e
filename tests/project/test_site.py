"""The documentation site: its navigation, its links to pages, headings and lines of code, and the messages that it explains.

`./launch.sh docs` builds it, which continuous integration does (.ci/run); these tests need none of its packages.
"""

import ast
import importlib.util
import json
import re
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_jax.cli import parser as cli
from experiments.reliability import colours
from experiments.reliability.browse import check_site
from tests.helpers import pages
from tests.helpers.small import ROOT

spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

TEXTS = {
    path: path.read_text(encoding="utf-8")
    for path in (*pages.list_pages(), *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")))
}
each_page = pytest.mark.parametrize("page", list(TEXTS), ids=[page.stem for page in TEXTS])


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub and the site give to a page's headings, and those of `<a id="...">`."""
    prose = pages.read_prose(page)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}
    return slugs | set(re.findall(r'<a id="([^"]+)">', prose))


@each_page
def test_links_lead_to_files_and_headings(page):
    for match in hooks.LINK.finditer(TEXTS[page]):
        target, anchor = match["path"], match["anchor"]
        if match["code"] or (target and ("://" in target or target.startswith("mailto:"))):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), match[0]
        if anchor:
            assert file.suffix == ".md" and anchor[1:] in anchors(file), f"{match[0]}: no such heading"


@each_page
def test_pictures_are_readable_on_a_dark_page(page):
    """Their text is dark, so their background must not be the page's own."""
    shown = [(page.parent / name).resolve() for name in re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", TEXTS[page])]
    for path in shown:
        with Image.open(path) as picture:
            lowest, _ = picture.convert("RGBA").getchannel("A").getextrema()
        assert lowest == 255, f"{path.name} has transparent parts"


@each_page
def test_functions_that_a_page_links_to_exist(page):
    steps = [match for match in hooks.LINK.finditer(TEXTS[page]) if match["name"] and match["path"].endswith(".py")]
    assert page.name != "walk.md" or len(steps) > 40
    for match in steps:
        path = (page.parent / match["path"]).resolve().relative_to(ROOT).as_posix()
        if match["name"] != Path(path).name:
            assert hooks.find_line(path, match["name"]), f"{path} has no {match['name']}"


def messages() -> list[str]:
    """Texts of the code, with … for each value that is put in."""
    found = []
    for path in sorted((ROOT / "attention_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [*found, (ROOT / "launch.sh").read_text(encoding="utf-8")]


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    quoted = re.findall(r"^> (.*)$", TEXTS[ROOT / "docs" / "troubleshooting.md"], re.MULTILINE)
    assert len(quoted) > 30
    code = messages()
    for message in quoted:
        parts = [part for part in re.split(r"…", message.removeprefix("`").removesuffix("`")) if part.strip()]
        pattern = re.compile(".*".join(map(re.escape, parts)))
        assert any(pattern.search(text) for text in code), message


def test_navigation_has_every_page():
    named = re.findall(r": ([\w/]+(?:\.md|/))$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    expected = {short for path, short in hooks.PAGES.items() if not path.startswith("experiments/")}
    assert sorted(named) == sorted(expected | {"api/", "commands/", "notebooks/"})


def test_every_command_has_a_page_with_its_help():
    commands = hooks.render_commands()
    listed = re.findall(r"^  ([a-z]+)\b", commands.pop("index"), re.MULTILINE)
    assert {*listed} - {*commands} == {"quickstart", "notebook", "docs", "python", "test", "setup"}  # launch.sh's own
    assert all(f"usage: {'attention_jax ' if name in cli.parsers else ''}" in text for name, text in commands.items())
    assert all("options:" in text for text in commands.values())


def test_a_notebook_is_a_page_with_its_output(monkeypatch):
    converter = types.ModuleType("latex2mathml.converter")
    converter.convert = lambda text, display="inline": f"<math {display}>{text}</math>"
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", converter)
    path = ROOT / "experiments" / "notebooks" / "attention_in_vision.ipynb"
    cells, text = json.loads(path.read_text(encoding="utf-8"))["cells"], hooks.render_notebook(path)
    assert text.count("```python") == sum(cell["cell_type"] == "code" for cell in cells)
    assert text.count("data:image/png") == path.read_text(encoding="utf-8").count('"image/png"') > 3
    assert "the same, (32,): largest difference" in text
    assert "<math block>M(F) =" in text and "<math inline>" in text and "$" not in hooks.LINK.sub("", text)


def test_every_pattern_of_the_api_finds_modules():
    for patterns in hooks.API.values():
        assert all(any((ROOT / "attention_jax").glob(pattern)) for pattern in patterns)


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("[x](tables.md#the-page)", "[x](tables.md#the-page)"),
        ("[x](../README.md)", "[x](index.md)"),
        ("[x](../experiments/results/bam.md)", "[x](results/bam.md)"),
        ("![x](../experiments/results/bam.png)", "![x](results/bam.png)"),
        ("[x](../experiments/notebooks/translate.ipynb)", "[x](notebooks/translate.md)"),
        ("[x](gke_jobset.yaml)", f"[x]({hooks.REPOSITORY}/blob/main/docs/gke_jobset.yaml)"),
        ("[x](https://example.org)", "[x](https://example.org)"),
        ("`a[0](b.md)`", "`a[0](b.md)`"),
        ("```python\na[0](b.md)\n```", "```python\na[0](b.md)\n```"),
    ],
)
def test_links_of_a_page_become_those_of_the_site(link, there):
    assert hooks.rewrite_links(link, "docs/speed.md", "speed.md") == there


def test_a_link_to_a_function_leads_to_its_line():
    code = (ROOT / "attention_jax" / "load.py").read_text(encoding="utf-8").splitlines()
    for name, begins in (("load_run", "def load_run("), ("Run.predict", "    def predict("), ("Run", "class Run")):
        text = hooks.rewrite_links(f"[`{name}`](../attention_jax/load.py)", "docs/walk.md", "walk.md")
        line = int(re.fullmatch(rf"\[`{name}`\]\({hooks.REPOSITORY}/blob/main/attention_jax/load.py#L(\d+)\)", text)[1])
        assert code[line - 1].startswith(begins)
    assert hooks.find_line("attention_jax/load.py", "Run.nothing") is None


def test_a_page_of_a_folder_links_upwards():
    text = hooks.rewrite_links("[x](../../docs/tables.md) [y](bam.md)", "experiments/results/dense.md", "results/dense.md")
    assert text == "[x](../tables.md) [y](bam.md)"


def test_lists_and_named_blocks_are_those_of_python_markdown():
    assert hooks.adapt_markdown("Text:\n- one\n- two\n") == "Text:\n\n- one\n- two\n"
    assert hooks.adapt_markdown("Accuracy: a.\nBold: b.\n\n| c |\n", True) == "Accuracy: a.  \nBold: b.\n\n| c |\n"
    assert hooks.adapt_markdown("- one\n- two\n") == "- one\n- two\n"
    assert hooks.adapt_markdown("```python file=a.py\n") == '```python title="a.py"\n'


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_the_browser_sees_a_missing_picture_a_script_error_and_a_page_that_is_too_wide(tmp_path):
    for name, body in {
        "picture": '<img src="none.png">',
        "script": "<script>nothing()</script>",
        "wide": '<div style="width: 900px">x</div>',
        "right": '<div style="overflow-x: auto"><div style="width: 900px">x</div></div>',
        "faint": '<div style="background: #222"><p style="color: #555">x</p></div>',
        "clear": '<article><img src="clear.png"></article>',
        "scheme": '<script>document.body.dataset.mdColorScheme = matchMedia("(prefers-color-scheme: dark)").matches'
        ' ? "slate" : "default"</script>',
    }.items():
        head = '<head><meta name="viewport" content="width=device-width"></head>'
        (tmp_path / f"{name}.html").write_text(f"<!doctype html><html>{head}<body>{body}</body></html>")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    found = check_site(tmp_path, "chromium", "dark")
    assert "contrast" in "".join(found.pop("faint.html"))
    assert "transparent picture" in "".join(found.pop("clear.html"))
    assert "missing picture" in "".join(found.pop("picture.html"))
    assert "nothing is not defined" in "".join(found.pop("script.html"))
    assert "pixels wide" in "".join(found.pop("wide.html"))
    assert found == {"right.html": [], "scheme.html": []}  # the browser prefers a dark page


def test_simulated_colours_are_those_that_people_confuse():
    grey, red_and_green = np.array([[40, 40, 40], [200, 200, 200]]), np.array([[160, 110, 0], [110, 128, 0]])
    blue_and_orange = np.array([[0, 114, 178], [213, 94, 0]])
    for deficiency in colours.SIMULATIONS:
        np.testing.assert_allclose(colours.simulate(grey, deficiency), colours.to_linear(grey), atol=1e-4)
        assert colours.find_closest(blue_and_orange, deficiency)[0] > 40
    plain = np.linalg.norm(np.diff(colours.to_lab(colours.to_linear(red_and_green)), axis=0))
    assert colours.find_closest(red_and_green, "deuteranopia")[0] < plain / 2


def test_the_chart_of_the_readme_is_readable_for_everybody():
    with Image.open(ROOT / "experiments" / "results" / "cued_arrow.png") as picture:
        found = colours.list_colours(picture)
    assert len(found) > 5
    for deficiency in colours.SIMULATIONS:
        assert colours.find_closest(found, deficiency)[0] > colours.APART
