"""Writes a Markdown page as one self-contained HTML file; it knows only the Markdown that this library's tables use."""

import base64
import html
import re
from collections.abc import Mapping

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1a1a1a; background: #fff; }
img { max-width: 100%; background: #fff; } code { background: #f0f0f0; padding: 0.1em 0.3em; overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; margin: 1rem 0; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #181818; } code { background: #303030; }
th, td { border-color: #444; } }
"""


def render_html(markdown: str, images: Mapping[str, bytes]) -> str:
    """Returns a page: headings, paragraphs, tables, **bold**, `code`, links and embedded pictures.

    Args:
        images: {file name: PNG} of the pictures that the page names; other pictures keep their address.
    """
    title = re.search(r"^# (.*)", markdown, re.MULTILINE)
    blocks = "\n".join(_render_block(block, images) for block in markdown.strip().split("\n\n"))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{{}}</title>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head.format(_escape(title[1] if title else ""))}'
        f"<style>{_STYLE}</style></head>\n<body>\n{blocks}\n</body></html>\n"
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _render_block(block: str, images: Mapping[str, bytes]) -> str:
    if block.startswith(("<details>", "</details>")):
        return block
    if heading := re.fullmatch(r"(#+) (.*)", block):
        return f"<h{len(heading[1])}>{_render_line(heading[2], images)}</h{len(heading[1])}>"
    lines = block.split("\n")
    if lines[0].startswith("| "):
        rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines if not line.startswith("| ---")]
        cells = [[_render_line(cell.replace("\\|", "|"), images) for cell in row] for row in rows]
        head, *body = [("th" if i == 0 else "td", row) for i, row in enumerate(cells)]
        text = "\n".join(f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in row)}</tr>" for tag, row in [head, *body])
        return f'<div class="table"><table>\n{text}\n</table></div>'
    return f"<p>{'<br>'.join(_render_line(line, images) for line in lines)}</p>"


def _render_line(text: str, images: Mapping[str, bytes]) -> str:
    def embed_image(found: re.Match[str]) -> str:
        content = images.get(html.unescape(found[2]))
        address = found[2] if content is None else f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return f'<img alt="{found[1]}" src="{address}">'

    kept: list[str] = []  # code stays as it is

    def keep(found: re.Match[str]) -> str:
        kept.append(f"<code>{found[1]}</code>")
        return f"\0{len(kept) - 1}\0"

    text = re.sub(r"`([^`]*)`", keep, _escape(text))
    text = re.sub(r"!\[([^\]]*)\]\(([^)]*)\)", embed_image, text)
    text = re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)
