"""Opens every page of the built site in headless Chromium at a phone's width, light and dark, and reports what is wrong.

    ./launch.sh docs && ./launch.sh python experiments/reliability/browse.py

Missing pictures, script errors, pages wider than the screen, text whose contrast with its background is below 3 (WCAG 2.1 asks
for that of large text and of graphics), and pictures with transparent parts, through which a dark page would show. The browser
prefers a dark page first (prefers-color-scheme) and then a light one; on a page with the theme's switch it must have followed.
Prints a line for each problem and exits with 1 if there is one. Without Chromium (Debian's package `chromium`) it says so and
exits with 0. The site is served on 127.0.0.1; one page of its own loads the others one by one in a frame and posts what it saw.
"""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

WIDTH, HEIGHT = 390, 844  # CSS pixels of a common phone
SECONDS = 600  # for all pages in one scheme
CONTRAST = 3
SCHEMES = {"dark": 0, "light": 1}  # Chromium's numbers of prefers-color-scheme
# Comes before every script of a page, so that none of their errors is missed.
RECORD = b"""<script>window.problems = [];
addEventListener("error", e => problems.push(e.message || "cannot load " + (e.target.src || e.target.href)), true);
addEventListener("unhandledrejection", e => problems.push("unhandled: " + e.reason));</script>"""
# An element may scroll by itself, as tables and code do; what counts is what makes the entire page wider than the screen.
DRIVER = """<body><script>
const frame = document.createElement("iframe");
frame.style = "border:0;width:%(width)dpx;height:%(height)dpx";
document.body.append(frame);
const open = path => new Promise(done => { frame.onload = () => setTimeout(done, 300); frame.src = "/" + path; });
const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
const paint = colours => {  // the colours over each other, the farthest first
  for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
  return pen.getImageData(0, 0, 1, 1).data;
};
const light = colour => [0, 1, 2].map(i => colour[i] / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
  .reduce((sum, x, i) => sum + [0.2126, 0.7152, 0.0722][i] * x, 0);
const contrast = (element, view) => {
  const behind = [];
  for (let at = element; at; at = at.parentElement) behind.unshift(view.getComputedStyle(at).backgroundColor);
  const ground = ["white", ...behind], ink = view.getComputedStyle(element).color;
  const [low, high] = [light(paint(ground)), light(paint([...ground, ink]))].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const faintest = (page, view) => {
  const seen = new Map(), walker = page.createTreeWalker(page.querySelector("article") || page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!text || element.closest("script, style, .headerlink, .md-clipboard") || !element.getClientRects().length) continue;
    const style = view.getComputedStyle(element), key = element.tagName + element.className + style.color;
    if (!seen.has(key)) seen.set(key, [contrast(element, view), text.slice(0, 40)]);
  }
  return [...seen.values()].sort((a, b) => a[0] - b[0])[0] || [21, ""];
};
const transparent = picture => {
  pen.clearRect(0, 0, 1, 1);
  pen.drawImage(picture, 0, 0, 1, 1, 0, 0, 1, 1);
  return pen.getImageData(0, 0, 1, 1).data[3] < 255;
};
(async () => {
  const found = {};
  for (const path of %(pages)s) {
    await open(path);
    const page = frame.contentDocument, view = frame.contentWindow, problems = [...view.problems];
    for (const picture of page.images) {
      picture.loading = "eager";
      await picture.decode().catch(() => problems.push("missing picture " + picture.src.slice(0, 100)));
      if (picture.naturalWidth && picture.closest("article") && transparent(picture))
        problems.push("transparent picture " + picture.src.slice(0, 100));
    }
    const wide = page.documentElement.scrollWidth, [least, text] = faintest(page, view);
    if (wide > %(width)d) problems.push("is " + wide + " pixels wide");
    if (least < %(contrast)d) problems.push("text of contrast " + least.toFixed(1) + ": " + text);
    const scheme = page.body.dataset.mdColorScheme;
    if (scheme && scheme !== "%(scheme)s") problems.push("has the scheme " + scheme + " and not %(scheme)s");
    found[path] = problems;
  }
  await fetch("/result", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, the driver, and takes the result."""

    driver: bytes
    result: dict[str, list[str]] | None = None
    finished = threading.Event()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.path == "/driver":
            self._send(self.driver)
        elif path.suffix == ".html" and path.is_file():
            self._send(path.read_bytes().replace(b"<head>", b"<head>" + RECORD, 1))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        Handler.result = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(b"")
        Handler.finished.set()

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def check_site(folder: Path, chromium: str, scheme: str = "light") -> dict[str, list[str]]:
    """Returns {page: problems} of all pages of a built site. Raises TimeoutError if the browser does not get through them."""
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    values = {"width": WIDTH, "height": HEIGHT, "pages": json.dumps(pages), "contrast": CONTRAST}
    Handler.driver = (DRIVER % {**values, "scheme": {"dark": "slate", "light": "default"}[scheme]}).encode()
    Handler.result = None
    Handler.finished.clear()
    with (
        tempfile.TemporaryDirectory() as profile,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        options += ["--remote-debugging-port=0", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"]
        address = f"http://127.0.0.1:{server.server_port}/driver"
        browser = subprocess.Popen([chromium, *options, address], stderr=subprocess.DEVNULL)
        finished = Handler.finished.wait(SECONDS)
        browser.terminate()
        browser.wait()
        server.shutdown()
    if not finished or Handler.result is None:
        raise TimeoutError(f"{chromium} did not get through {len(pages)} pages in {SECONDS} s")
    return Handler.result


def main() -> int:
    """Checks the folder that is given, by default `site`, and returns the exit code."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not (folder / "index.html").exists():
        print(f"{folder} has no index.html: build the site with ./launch.sh docs.")
        return 2
    if chromium is None:
        print("skipped: there is no Chromium here (Debian: apt-get install chromium).")
        return 0
    lines, number = [], 0
    for scheme in SCHEMES:
        found = check_site(folder, chromium, scheme)
        number = len(found)
        lines += [f"{page}, {scheme}: {problem}" for page, problems in found.items() for problem in problems]
    print("\n".join([*lines, f"{number} pages at {WIDTH} pixels, {' and '.join(SCHEMES)}: {len(lines)} problems"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
