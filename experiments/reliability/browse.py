"""Opens every page of the built site in headless Chromium at the width of a phone: missing pictures, script errors, overflow.

    ./launch.sh docs && ./launch.sh python experiments/reliability/browse.py

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
SECONDS = 600  # for all pages
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
(async () => {
  const found = {};
  for (const path of %(pages)s) {
    await open(path);
    const page = frame.contentDocument, problems = [...frame.contentWindow.problems];
    for (const picture of page.images) {
      picture.loading = "eager";
      await picture.decode().catch(() => problems.push("missing picture " + picture.src.slice(0, 100)));
    }
    const wide = page.documentElement.scrollWidth;
    if (wide > %(width)d) problems.push("is " + wide + " pixels wide");
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


def check_site(folder: Path, chromium: str) -> dict[str, list[str]]:
    """Returns {page: problems} of all pages of a built site. Raises TimeoutError if the browser does not get through them."""
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    Handler.driver = (DRIVER % {"width": WIDTH, "height": HEIGHT, "pages": json.dumps(pages)}).encode()
    Handler.finished.clear()
    with (
        tempfile.TemporaryDirectory() as profile,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        address = f"http://127.0.0.1:{server.server_port}/driver"
        browser = subprocess.Popen([chromium, *options, "--remote-debugging-port=0", address], stderr=subprocess.DEVNULL)
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
    found = check_site(folder, chromium)
    lines = [f"{page}: {problem}" for page, problems in found.items() for problem in problems]
    print("\n".join([*lines, f"{len(found)} pages at {WIDTH} pixels, {len(lines)} problems"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
