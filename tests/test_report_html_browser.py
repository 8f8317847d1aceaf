"""The page in Chromium: no error, no request, nothing to scroll sideways."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_report import REPORT, noise

from mmprune.run.report_html import write


@pytest.fixture(scope='module')
def chromium() -> str:
    names = ('chromium', 'chromium-browser', 'google-chrome')
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f'none of {", ".join(names)} is installed')
    return found


def browse(chromium: str, page: Path, folder: Path, width: int) -> dict:
    """Opens a page; returns its DOM, its console and its requests."""
    net_log = folder / 'net.json'
    done = start(
        chromium,
        page,
        folder,
        '--enable-logging=stderr',
        f'--log-net-log={net_log}',
        f'--window-size={width},900',
    )
    events = json.loads(net_log.read_text())['events']
    # The browser's own errands (updates) have no page as their origin.
    requests = {
        params['url']
        for params in (event.get('params', {}) for event in events)
        if params.get('initiator', 'not an origin') != 'not an origin'
        and not params.get('url', '').startswith(('file:', 'data:'))
    }
    lines = [x for x in done.stderr.splitlines() if 'CONSOLE' in x]
    return dict(dom=done.stdout, console=lines, requests=requests)


def start(
    chromium: str, page: Path, folder: Path, *flags: str
) -> subprocess.CompletedProcess:
    always = ('headless', 'no-sandbox', 'disable-gpu', 'no-first-run')
    quiet = ('background-networking', 'component-update', 'sync', 'quic')
    return subprocess.run(
        [
            chromium,
            *(f'--{flag}' for flag in always),
            *(f'--disable-{flag}' for flag in quiet),
            '--host-resolver-rules=MAP * ~NOTFOUND',
            f'--user-data-dir={folder / "profile"}',
            '--dump-dom',
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


# Reports its own width and errors, as a page of ours never would.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><iframe id="f" src="{src}"
style="width:{width}px;height:800px;border:0"></iframe><p id="out"></p>
<script>
const frame = document.getElementById('f');
frame.addEventListener('load', () => {{
  const root = frame.contentDocument.documentElement;
  document.getElementById('out').textContent =
    'scroll ' + root.scrollWidth + ' client ' + root.clientWidth;
}});
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize('width', [1440, 390])
def test_a_browser_opens_it_without_errors_or_requests(
    chromium, reported_run, tmp_path, width
):
    shutil.copytree(reported_run, tmp_path / 'run')
    noise(tmp_path / 'run' / 'drive.gif', 900, 300, frames=3)
    page = write(tmp_path / 'run')
    found = browse(chromium, page, tmp_path, width)
    assert REPORT['title'] in found['dom']
    assert found['console'] == []
    assert found['requests'] == set()


@pytest.mark.browser
def test_the_check_would_see_an_error_and_a_request(chromium, tmp_path):
    page = tmp_path / 'bad.html'
    page.write_text(
        '<img src="http://127.0.0.1:9/x.png"><script>missing()</script>'
    )
    found = browse(chromium, page, tmp_path, 800)
    assert any('missing is not defined' in x for x in found['console'])
    assert 'http://127.0.0.1:9/x.png' in found['requests']


@pytest.mark.browser
@pytest.mark.parametrize('width', [1440, 768, 390, 320])
def test_no_page_scrolls_sideways(chromium, reported_run, tmp_path, width):
    shutil.copytree(reported_run, tmp_path / 'run')
    noise(tmp_path / 'run' / 'wide.png', 2400, 300)
    page = write(tmp_path / 'run')
    probe = tmp_path / 'probe.html'
    probe.write_text(PROBE.format(src=page.as_uri(), width=width))
    done = start(
        chromium,
        probe,
        tmp_path,
        '--allow-file-access-from-files',
        '--virtual-time-budget=2000',
    )
    scroll, client = map(
        int, re.search(r'scroll (\d+) client (\d+)', done.stdout).groups()
    )
    assert client <= width
    assert scroll <= client
