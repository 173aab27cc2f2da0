"""Zoos behind servers: several at once, dead, moved, hostile; what is kept of them for later."""

import json
import logging
from pathlib import Path

import pytest

from gradaug_det.commands import cli
from gradaug_det.errors import ZooError
from gradaug_det.zoo import download as http
from gradaug_det.zoo import sources
from gradaug_det.zoo.fetch import fetch
from gradaug_det.zoo.publish import publish
from gradaug_det.zoo.sources import find, load_indexes
from tests.zoo.helpers import make_file
from tests.zoo.server import endless, redirect, serve, status, truncated

SECRET = "p%40ss-word"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a zoo of a and b, and that of another one whose a is another file."""
    folder = tmp_path_factory.mktemp("zoos")
    files = [str(make_file(folder / f"{name}.safetensors", name=name)) for name in "ab"]
    publish(folder / "first", files)
    other = make_file(folder / "other.safetensors", name="a", source="another test")
    publish(folder / "second", [str(other)])
    return folder / "first", folder / "second"


@pytest.fixture
def use(cache_folder, monkeypatch):
    """Names zoos as a new process would see them."""

    def put(*zoos):
        monkeypatch.setenv("GRADAUG_ZOO_URL", ", ".join(map(str, zoos)))
        sources._load_remote_once.cache_clear()

    return put


@pytest.fixture
def warnings(caplog):
    """What is logged, as text."""
    caplog.set_level(logging.WARNING, "gradaug_det")
    return lambda: caplog.text


def refusal(name):
    with pytest.raises(ZooError) as caught:
        fetch(name)
    return str(caught.value)


def test_a_served_zoo(published, use, capsys, cache_folder):
    """Two backbones by the commands, from the server to files that are verified."""
    with serve(published[0]) as server:
        use(server.url)
        assert cli.main(["zoo", "list"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        address = f"{server.url}/index.json"
        assert [(r[0], *r[4:]) for r in rows[1:3]] == [(n, "server", address) for n in "ab"]
        assert rows[3][0] == "mini-resnet18-anywidth"
        assert cli.main(["zoo", "download", "a", "b"]) == 0
        paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert cli.main(["zoo", "verify", "a", "b"]) == 0
        assert capsys.readouterr().out.count("as in the index") == 2
        requested = [path for path, _ in server.requests]
        assert requested == ["/index.json", "/a.safetensors", "/b.safetensors"]
    for name, path in zip("ab", paths, strict=True):
        assert path.parent.parent == cache_folder
        assert path.read_bytes() == (published[0] / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("gone", ["unreachable", "404", "offline"])
def test_the_last_copy_of_an_index_is_used(published, use, warnings, monkeypatch, gone):
    with serve(published[0]) as server:
        use(server.url)
        path = fetch("b")
        if gone == "unreachable":
            server.behaviours = [status(500)]
        elif gone == "404":
            server.behaviours = [status(404)]
        else:
            monkeypatch.setenv("GRADAUG_OFFLINE", "1")
        use(server.url)
        server.requests.clear()
        assert fetch("b") == path
        told = "the index is the one of an earlier time"
        assert (told in warnings()) == (gone != "offline")
        assert len(server.requests) == {"unreachable": 2, "404": 1, "offline": 0}[gone]
        problem = "GRADAUG_OFFLINE is set" if gone == "offline" else "cannot download"
        with pytest.raises(ZooError, match=rf"{problem}.*put the file at .*a\.safetensors"):
            fetch("a")


def test_a_dead_zoo_is_left_out_and_told(published, use, warnings):
    with serve(published[0]) as server:
        dead = server.url
    use(f"{dead}/sub", published[1])
    assert find("a").home == published[1]
    assert warnings().count(f"the zoo {dead}/sub/index.json is left out") == 1
    with pytest.raises(ZooError, match="no backbone 'b'"):
        find("b")


def test_two_zoos_with_files_of_one_name(published, use, capsys):
    """The first one's is in force, and neither takes the other's file from the cache."""
    with serve(published[0]) as one, serve(published[1]) as two:
        for order in ((one, two), (two, one)):
            use(*(server.url for server in order))
            assert fetch("a").read_bytes() == (order[0].source / "a.safetensors").read_bytes()
            assert find("a").index == f"{order[0].url}/index.json"
        assert fetch("b").read_bytes() == (published[0] / "b.safetensors").read_bytes()
        assert cli.main(["zoo", "list"]) == 0
        out = capsys.readouterr().out
        assert f"a of {one.url}/index.json: hidden by {two.url}/index.json\n" in out
        assert sum(line.startswith("a  ") for line in out.splitlines()) == 1
        cli.main(["zoo", "list", "--json"])
        listed = json.loads(capsys.readouterr().out)
        assert [entry["name"] for entry in listed][:2] == ["a", "b"]


def test_redirects_to_another_host_and_no_secret_in_any_message(
    published, use, warnings, capfd, monkeypatch
):
    """As GitHub's releases and Hugging Face's files are: the password stays with the first."""
    monkeypatch.setattr(http, "ATTEMPTS", 2)
    with serve(published[0]) as target:
        host = target.url.replace("127.0.0.1", "localhost")
        with serve(b"", redirect(host)) as front:
            address = front.url.replace("http://", f"http://me:{SECRET}@")
            use(address)
            assert fetch("a", progress=True).name == "a.safetensors"
            assert cli.main(["zoo", "list"]) == 0
            assert all(password.startswith("Basic ") for password in front.passwords)
            assert target.passwords == [None, None]
            target.behaviours = [status(500)]
            use(address)
            messages = [refusal("b")]
            monkeypatch.setenv("GRADAUG_OFFLINE", "1")
            messages.append(refusal("b"))
            monkeypatch.delenv("GRADAUG_OFFLINE")
            front.behaviours = [redirect("http://127.0.0.1:9")]
            use(address)
            messages.append(refusal("b"))
    use(address)
    messages.append(refusal("b"))
    use(f"{address}/?x=1")
    messages.append(refusal("b"))
    text = "\n".join([*messages, warnings(), *capfd.readouterr()])
    assert text.count("127.0.0.1") > 5
    for secret in (SECRET, "p@ss", "me:", "sealed"):
        assert secret not in text


def test_a_hostile_index_is_refused_and_not_kept(published, use, warnings, monkeypatch):
    with serve(published[0]) as server:
        use(server.url)
        fetch("a")
        server.behaviours = [truncated(1000, say_length=False)]
        use(server.url)
        with pytest.raises(ZooError, match="is not JSON"):
            find("a")
        server.behaviours = [endless]
        use(server.url)
        assert find("a").home == server.url
        assert "sends more than 1048576 bytes" in warnings()
        monkeypatch.setenv("GRADAUG_OFFLINE", "1")
        assert find("a").home == server.url


def test_an_index_is_read_once_a_process(published, use, cache_folder):
    with serve(published[0]) as server:
        use(f"{server.url}/index.json", published[1] / "index.json")
        assert find("a") == find("a")
        assert [index.address for index in load_indexes()[:2]] == [
            f"{server.url}/index.json",
            str(published[1] / "index.json"),
        ]
        assert len(server.requests) == 1
        cache_folder.joinpath("indexes").rename(cache_folder / "elsewhere")
        (cache_folder / "indexes").write_text("in the way: nothing can be kept")
        use(server.url)
        assert find("a").home == server.url


def test_base_urls_are_joined(published, use):
    (published[1].parent / "deep").mkdir()
    publish(published[1].parent / "deep" / "zoo", [str(published[1] / "a.safetensors")])
    with serve(published[1].parent) as server:
        for end in ("", "/", "/index.json"):
            use(f"{server.url}/deep/zoo{end}")
            assert find("a").home == f"{server.url}/deep/zoo"
        assert fetch("a").is_file()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", []),
        (" , ", []),
        ("http://a/b", ["http://a/b"]),
        ("/my disk/zoo, ~/zoo,http://a", ["/my disk/zoo", "~/zoo", "http://a"]),
        ("http://a /b\n./c https://d", ["http://a", "/b", "./c", "https://d"]),
        ("zoo", ["zoo"]),
    ],
)
def test_places(text, places):
    assert sources._split(text) == places


@pytest.mark.parametrize("place", ["ftp://example.org", "http://a b", "http://a?b", "file:///etc"])
def test_what_is_no_place(use, place):
    use(place)
    with pytest.raises(ZooError, match=r"must name folders and http\(s\)://.* got '.*correct"):
        load_indexes()


def test_a_wheel_without_a_zoo(cache_folder, monkeypatch, published, use):
    """The package alone: the index names its backbones, and the error where to have them from."""
    monkeypatch.setattr(sources, "CHECKOUT", cache_folder / "none")
    message = (
        r"mini-resnet18-gradaug is not in the cache, and .*index\.json names no address of it: a "
        r"release of gradaug_det has it among its files, a checkout in its folder zoo; set "
        r"GRADAUG_ZOO_URL to the URL or folder of a zoo that has it, or put the file at .*"
        r"22392684 bytes, sha256 da0d59fe93"
    )
    with pytest.raises(ZooError, match=message):
        fetch("mini-resnet18-gradaug")
    assert find("mini-resnet18-gradaug").home is None
    use(Path(__file__).parents[2] / "zoo")
    assert fetch("mini-resnet18-gradaug").is_file()
