"""Nothing in the repository names a package registry's host or a path of one machine."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In pieces, or this file would find itself.
HOSTS = ("pypi" + ".org", "python" + "hosted", "registry." + "npmjs", "deb." + "debian")
FORBIDDEN = re.compile(
    "|".join(re.escape(host) for host in HOSTS) + r"|(?<![\w./~$})>-])/(?:" + "work|root" + ")/",
    re.IGNORECASE,
)


def tracked_files() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.split("\0") if name]


def offences(text: str) -> list[str]:
    return [match.group() for match in FORBIDDEN.finditer(text)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("https://" + HOSTS[0] + "/simple", 1),
        ("see files." + HOSTS[1].upper() + ".example", 1),
        ("open('/" + "work/main/x')", 1),
        ("cache in /" + "root/.cache", 1),
        ("frame/" + "work/x and https://example.com/" + "work/y", 0),
        ("../" + "root/x", 0),
    ],
)
def test_the_pattern_finds_what_it_should(text, count):
    assert len(offences(text)) == count


def test_no_registry_hosts_and_no_paths_of_one_machine():
    files = [path for path in tracked_files() if path.is_file()]
    assert ROOT / "setup.py" in files
    found = {}
    for path in files:
        data = path.read_bytes()
        if b"\0" not in data[:8192] and (bad := offences(data.decode("utf-8", errors="replace"))):
            found[str(path.relative_to(ROOT))] = sorted(set(bad))
    assert not found, f"say it without naming a registry's host or this machine's folders: {found}"


def test_tools_are_few_and_named_in_their_readme():
    scripts = sorted(path.name for path in (ROOT / "tools").glob("*.py"))
    assert len(scripts) <= 9
    text = (ROOT / "tools" / "README.md").read_text("utf-8")
    assert sorted(re.findall(r"^\| \[(\w+\.py)\]", text, flags=re.MULTILINE)) == scripts
