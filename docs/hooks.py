"""Makes the site of `mkdocs.yml` from the repository: pages outside docs/, notebooks, commands, API, and links between them.

On GitHub a page links to files by their paths. On the site the same link leads to the page made from that file, to a copy of
a picture, or to the file in the repository of pyproject.toml; `[`name`](../attention_jax/file.py)` leads to the line of `name`.
"""

import ast
import base64
import contextlib
import io
import json
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
# Page of the API -> its modules, as patterns of files in the package.
API = {
    "nn": ["nn/*.py"],
    "models": ["models/*.py"],
    "data": ["data/*.py", "data/images/*.py", "data/text/*.py"],
    "optim": ["optim/*.py"],
    "search": ["search.py"],
    "recipes": ["recipes.py"],
    "config": ["config/config.py", "config/defaults.py", "config/plugins.py"],
    "load": ["load.py", "errors.py", "storage.py", "tree.py"],
    "weights": ["interop/pretrained.py", "interop/export.py", "interop/marian.py"],
    "analysis": ["analysis/*.py"],
    "tables": ["tables/table.py", "tables/measures.py", "tables/statistics.py", "tables/verdicts.py", "tables/compare.py"],
    "train": ["train/loop.py", "train/step.py", "train/evaluate.py", "train/metrics.py"],
}
LINK = re.compile(
    r"(?P<code>^ *```.*?^ *```|(?<!\[)`[^`\n]+`)|(?:\[`(?P<name>[\w.]+)`)?\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?(?=\))",
    re.MULTILINE | re.DOTALL,
)


def list_site_pages() -> dict[str, str]:
    """Returns {path in the repository: address on the site} of every page made from a committed file."""
    pages = {"README.md": "index.md", "docs/index.md": "contents.md"}
    patterns = ("docs/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/results/*.md", "experiments/notebooks/*.ipynb")
    for path in sorted(found.relative_to(ROOT).as_posix() for pattern in patterns for found in ROOT.glob(pattern)):
        short = path.removeprefix("docs/").removeprefix("experiments/").replace(".ipynb", ".md")
        pages.setdefault(path, short)
    return pages


PAGES = list_site_pages()
GENERATED: dict[str, str] = {}  # address on the site -> Markdown


def find_line(path: str, name: str) -> int | None:
    """Returns the line at which a module defines `name`, such as `load_run` or `Run.predict`, or None where it does not."""
    body, line = ast.parse((ROOT / path).read_text(encoding="utf-8")).body, None
    for part in name.split("."):
        node: Any = next((node for node in body if getattr(node, "name", None) == part), None)
        if node is None:
            return None
        body, line = node.body, node.lineno
    return line


def rewrite_links(text: str, path: str, site_path: str) -> str:
    """Returns Markdown of the repository's file `path` with each relative link as the site's page `site_path` needs it."""

    def rewrite(match: re.Match) -> str:
        code, name, link, anchor = match["code"], match["name"], match["path"], match["anchor"] or ""
        if code or not link or "://" in link or link.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if target in PAGES:
            link = posixpath.relpath(PAGES[target], posixpath.dirname(site_path) or ".")
        elif target.endswith(".png"):
            link = posixpath.relpath(target.removeprefix("experiments/"), posixpath.dirname(site_path) or ".")
        else:
            line = name and target.endswith(".py") and find_line(target, name)
            link, anchor = f"{REPOSITORY}/blob/main/{target}", f"#L{line}" if line else anchor
        return f"{f'[`{name}`' if name else ''}]({link}{anchor}"

    return LINK.sub(rewrite, text)


def adapt_markdown(text: str, has_line_per_statement: bool = False) -> str:
    """Returns GitHub's Markdown as Python-Markdown reads it: lists after paragraphs, folded text, files' names on blocks.

    With `has_line_per_statement`, as result pages are written, a line that ends a sentence ends a line of the page too.
    """
    if has_line_per_statement:
        text = re.sub(r"^([\w*(].*[.:])\n(?=[A-ZΔ*(])", r"\1  \n", text, flags=re.MULTILINE)
    text = re.sub(r"^(```\w+) file=(\S+)$", r'\1 title="\2"', text, flags=re.MULTILINE)
    text = re.sub(r"^(?!\s*(?:[-*] |\d+\. |\||```|#|$))(.+)\n(?=(?:- |1\. ))", r"\1\n\n", text, flags=re.MULTILINE)
    return text.replace("<details>", '<details markdown="1">')


def render_notebook(path: Path) -> str:
    """Returns an executed notebook as Markdown, with its code, what it printed and its pictures."""
    from latex2mathml.converter import convert

    def formula(match: re.Match) -> str:
        if match[1]:  # a line of its own, which scrolls on a narrow screen
            return f'\n\n<div style="overflow-x: auto">{convert(match[1], display="block")}</div>\n\n'
        return convert(match[2])

    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", formula, source, flags=re.DOTALL))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if picture := data.get("image/png"):
                picture = base64.b64encode(base64.b64decode("".join(picture))).decode()
                parts.append(f'<img alt="picture made by the code above" src="data:image/png;base64,{picture}">')
            elif printed := "".join(output.get("text", data.get("text/plain", []))):
                parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts)


def render_commands() -> dict[str, str]:
    """Returns {command: page}, each with what the command prints for `--help`."""
    from attention_jax.cli import main as cli
    from attention_jax.cli.parser import make_parser, parsers
    from attention_jax.launch.__main__ import LAUNCHERS

    make_parser()
    pages = {}
    for name, main in {**{name: lambda words: cli.main(words) for name in parsers}, **LAUNCHERS}.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            main(["--help"] if name in LAUNCHERS else [name, "--help"])
        pages[name] = f"# {name}\n\n`./launch.sh {name} --help` prints:\n\n```text\n{printed.getvalue().rstrip()}\n```\n"
    listed = re.search(r"<<'TEXT'\n(.*?)\nTEXT", (ROOT / "launch.sh").read_text(encoding="utf-8"), re.DOTALL)
    assert listed is not None
    return {"index": f"# Commands\n\n`./launch.sh` prints:\n\n```text\n{listed[1]}\n```\n", **pages}


def render_api() -> dict[str, str]:
    """Returns {page: Markdown} that mkdocstrings fills with the docstrings of the modules."""
    import attention_jax as aj

    lines = []
    for name in aj.__all__:
        home = getattr(aj, name)
        first = (home.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| [`aj.{name}`][{home.__module__}.{name}] | {' '.join(first.split()).replace('|', '')} |")
    table = "\n".join(["| name | |", "| --- | --- |", *lines])
    pages = {"index": f"# API\n\n`import attention_jax as aj` has these names.\n\n{table}\n"}
    for title, patterns in API.items():
        files = [path for pattern in patterns for path in sorted((ROOT / "attention_jax").glob(pattern))]
        modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.name != "__init__.py"]
        pages[title] = f"# {title}\n\n" + "\n".join(f"::: {module}" for module in modules) + "\n"
    return pages


def on_config(config: Any) -> Any:
    """Adds the generated pages to the navigation, and the repository's address of pyproject.toml."""
    config.repo_url, config.repo_name, config.edit_uri = REPOSITORY, "attention_jax", None
    folders: dict[str, dict[str, str]] = {"commands/": render_commands(), "api/": render_api()}
    notebooks = {Path(path).stem: path for path in PAGES if path.endswith(".ipynb")}
    folders["notebooks/"] = {name: render_notebook(ROOT / path) for name, path in notebooks.items()}
    GENERATED.update({f"{folder}{name}.md": text for folder, pages in folders.items() for name, text in pages.items()})
    for item in config.nav:
        for title, value in item.items():
            if isinstance(value, str) and value in folders:
                item[title] = [f"{value}{name}.md" for name in folders[value]]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds pages from outside docs/, generated ones, and the pictures that pages show."""
    from mkdocs.structure.files import File

    for path, uri in PAGES.items():
        if not path.startswith("docs/") or path == "docs/index.md":
            old = files.get_file_from_path(uri)
            if old is not None:
                files.remove(old)
            text = GENERATED.get(uri) or (ROOT / path).read_text(encoding="utf-8")
            files.append(File.generated(config, uri, content=text))
    for uri, text in GENERATED.items():
        if files.get_file_from_path(uri) is None:
            files.append(File.generated(config, uri, content=text))
    for picture in (ROOT / "experiments" / "results").glob("*.png"):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the page's text with links for the site."""
    path = {uri: path for path, uri in PAGES.items()}.get(page.file.src_uri)
    if path is None:
        return markdown
    return adapt_markdown(rewrite_links(markdown, path, page.file.src_uri), path.startswith("experiments/results/"))
