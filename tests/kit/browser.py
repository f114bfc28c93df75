"""A real browser that looks at pages."""

import pathlib
import re
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH: Debian has it as a package")

_SCRIPT = """<script>addEventListener('load', () => {
  const wrong = [];
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('page wider than the window');
  for (const svg of document.querySelectorAll('figure svg')) {
    const box = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
    texts.forEach((a, i) => {
      if (a.left < box.left - 1 || a.right > box.right + 1 || a.top < box.top - 1 || a.bottom > box.bottom + 1)
        wrong.push('cut: ' + svg.querySelectorAll('text')[i].textContent);
      for (const b of texts.slice(i + 1))
        if (a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2)
          wrong.push('overlap: ' + svg.querySelectorAll('text')[i].textContent);
    });
  }
  document.title = 'wrong: ' + JSON.stringify(wrong);
});</script>"""


def browse(path: pathlib.Path, profile: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """The DOM of a file's page after it was loaded, and the lines that went to the browser's console."""
    return browse_url(path.as_uri(), profile, *options)


def browse_url(url: str, profile: pathlib.Path, *options: str) -> tuple[str, list[str]]:
    """As `browse`, of any page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
    ]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def find_misfits(page: pathlib.Path, folder: pathlib.Path, width: int) -> str:
    """The title `wrong: [...]` with what is cut, overlaps or is wider than a window of that width.

    It asks the browser itself; the script that asks needs a page without its policy.
    """
    asked = folder / "asked.html"
    asked.write_text(re.sub(r"<meta http-equiv=[^>]*>", lambda _: _SCRIPT, page.read_text(), count=1))
    dom, _ = browse(asked, folder / f"profile-{width}", f"--window-size={width},900", "--dump-dom")
    return re.search("<title>(.*?)</title>", dom)[1]
