"""The report of a run: what is in it, and that a browser finds nothing missing."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import attention_jax as aj
from attention_jax.cli import main as cli
from attention_jax.errors import UserError
from attention_jax.tables import run_page
from attention_jax.train.workdir import EVALUATION
from tests.helpers.make_tiny_run import RUN

pytestmark = pytest.mark.usefixtures("quickly")

# Comes first in the page, so that no error is missed; what it saw is in the dumped document.
_RECORD = """<script>window.problems = [];
addEventListener("error", e => problems.push(e.message || "cannot load " + e.target.src), true);
addEventListener("load", () => {
  for (const image of document.images) if (!image.naturalWidth) problems.push("missing picture " + image.alt);
  document.documentElement.dataset.seen = JSON.stringify({problems, images: document.images.length});
});</script>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The committed run with an evaluation of today."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(RUN, folder)
    (folder / EVALUATION).unlink()
    assert cli.main(["evaluate", f"--workdir={folder}", f"--predictions={folder / EVALUATION}"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(run):
    assert cli.main(["report", f"--workdir={run}", "--examples=3"]) == 0
    return run / "report.html"


def test_the_page_has_every_part_and_nothing_from_elsewhere(run, page):
    text = page.read_text()
    headings = re.findall(r"<h\d>(.*?)</h\d>", text)
    wanted = "Scores, Curves, What it gets wrong, How sure it is, The surest wrong ones, Where it looked, Config, Environment"
    assert set(wanted.split(", ")) <= set(headings)
    addresses = re.findall(r'(?:src|href)="(.{0,15})', text)
    assert len(addresses) == 5 and all(each.startswith("data:image/png") for each in addresses)
    assert "left out" not in text
    found = aj.load_run(run).evaluation
    for place in found.find_surest_wrong(3):
        assert found.name(place) in text
    assert "stage1 gate" not in text and f"{100 * found.accuracy:.2f} % right" in text and "optimizer.momentum" in text
    before = page.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        run_page.write_report(str(run), str(page))
    assert page.read_bytes() == before


def test_a_browser_finds_no_missing_picture_and_no_error(page, tmp_path):
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium to open the page with: apt-get install chromium")
    (copy := tmp_path / "page.html").write_text(page.read_text().replace("<head>", f"<head>{_RECORD}", 1))

    def open_page() -> dict:
        words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        made = subprocess.run([*words, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=120)
        seen = re.search(r'data-seen="([^"]*)"', made.stdout)
        assert seen, made.stderr
        return json.loads(html.unescape(seen[1]))

    assert open_page() == {"problems": [], "images": 5}
    broken = re.sub(r"base64,.{20}", "base64,AAAA", copy.read_text(), count=1).replace(
        "</body>", "<script>none()</script></body>"
    )
    copy.write_text(broken)
    problems = " ".join(open_page()["problems"])
    assert "none" in problems and "missing picture" in problems


def test_text_of_the_data_is_no_markup():
    for text in ("[a](javascript:alert(1))", "a|b", "`x`", "<img src=x>", "two\nlines"):
        (cell,) = re.findall(r"<td>(.*?)</td>", run_page.render_html(f"| a |\n| --- |\n| {run_page.quote_text(text)} |", {}))
        plain = html.unescape(re.sub(r"</?code>", "", cell))
        assert plain == " ".join(text.replace("`", "'").split()) and "<a" not in cell and "<img" not in cell


def test_what_is_not_there_is_said(run, tmp_path):
    """Without an evaluation, and with data that are not those that were evaluated, the page still has the rest."""
    shutil.copytree(run, folder := tmp_path / "run")
    with np.load(folder / EVALUATION) as saved:
        changed = {**saved, "label": (saved["label"] + 1) % 10}
    np.savez(folder / EVALUATION, **changed)
    assert "Images are left out: <code>the data are not those" in run_page.write_report(str(folder)).read_text()
    (folder / EVALUATION).unlink()
    text = run_page.write_report(str(folder), str(tmp_path / "other.html")).read_text()
    assert "there is no evaluation of step 370" in text and "<h2>Config</h2>" in text
