"""tools/install_detectron2.py: the wheel it makes, what it refuses and what it leaves alone."""

import base64
import copy
import doctest
import hashlib
import http.server
import inspect
import io
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import install_detectron2 as installer

# Laid out like the real sdist, with its import sites of the compiled module and the lines to fix.
TREE = {
    "LICENSE": "the licence",
    "PKG-INFO": "Name: pb1-detectron2\n",
    "setup.py": "import torch",
    "tools/train_net.py": "",
    "detectron2/__init__.py": '__version__ = "0.6"\n',
    "detectron2/layers/__init__.py": "from .deform_conv import deform_conv\n",
    "detectron2/layers/deform_conv.py": (
        "from detectron2 import _C\n\ndef deform_conv(x):\n    return _C.deform_conv_forward(x)\n"
    ),
    "detectron2/evaluation/__init__.py": "",
    "detectron2/evaluation/fast_eval_api.py": (
        "from detectron2 import _C\n\nclass COCOeval_opt:\n    pass\n"
    ),
    "detectron2/evaluation/coco_evaluation.py": (
        "class COCOeval:\n    pass\n\n"
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n\n"
        "class COCOEvaluator:\n"
        "    def __init__(self, use_fast_impl=True):\n"
        "        self._use_fast_impl = use_fast_impl\n"
    ),
    "detectron2/structures/masks.py": "dtype = np.bool\n",
    "detectron2/model_zoo/configs/COCO-Detection/retinanet.yaml": "np.int: kept\n",
    "detectron2/projects/__init__.py": "",
    "projects/PointRend/point_rend/__init__.py": "name = 'PointRend'\n",
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
}


def make_sdist(folder: Path, tree: dict[str, str]) -> Path:
    path = folder / installer.SDIST
    with tarfile.open(path, "w:gz") as tar:
        for name, text in tree.items():
            info = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def sdist(tmp_path):
    return make_sdist(tmp_path, TREE)


@pytest.fixture
def wheel(sdist, tmp_path):
    return installer.build_wheel(sdist, tmp_path)


@pytest.fixture
def known_sdist(sdist, monkeypatch):
    """The fake sdist, accepted as if it were the real one."""
    monkeypatch.setattr(installer, "check_digest", lambda path: None)
    return sdist


def forbidden_fetch(target):
    raise AssertionError("nothing may be downloaded")


def run_python(code: str, path: Path, python: str = sys.executable) -> str:
    """Run code in a fresh interpreter that finds modules in `path` first."""
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("np.zeros(3, dtype=np.int)", "np.zeros(3, dtype=int)"),
        ("x.astype(np.bool), y.astype(np.float)", "x.astype(bool), y.astype(float)"),
        ("np.loadtxt(f, dtype=np.str)", "np.loadtxt(f, dtype=str)"),
        ("numpy.object", "object"),
        ("np.int-1", "int-1"),
        ("interp=Image.LINEAR, fill=0", "interp=Image.BILINEAR, fill=0"),
    ],
)
def test_removed_aliases_are_replaced(old, new):
    assert installer.modernize(old) == new


@pytest.mark.parametrize(
    "source",
    [
        "np.int64 np.int_ np.intp np.bool_ np.float32 np.float_ np.str_ np.object_ np.complex64",
        "self.np.int",
        "myImage.LINEAR_MODE Image.BILINEAR Image.LINEARS",
        "snp.float",
    ],
)
def test_other_words_are_left(source):
    assert installer.modernize(source) == source


def test_wheel_holds_package_configs_projects_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        config = archive.read("detectron2/model_zoo/configs/COCO-Detection/retinanet.yaml")
        masks = archive.read("detectron2/structures/masks.py")
        licence = archive.read(f"{installer.DIST_INFO}/LICENSE")
    assert {"detectron2/_C.py", "detectron2/layers/deform_conv.py"} <= names
    assert "detectron2/projects/point_rend/__init__.py" in names
    assert "detectron2/projects/panoptic_deeplab/__init__.py" in names
    assert all(name.startswith(("detectron2/", installer.DIST_INFO)) for name in names)
    assert config == b"np.int: kept\n"  # only Python files are edited
    assert masks == b"dtype = bool\n"
    assert licence == b"the licence"


def test_record_lists_every_file_with_its_digest(wheel):
    with zipfile.ZipFile(wheel) as archive:
        rows = archive.read(f"{installer.DIST_INFO}/RECORD").decode().splitlines()
        listed = {}
        for row in rows:
            name, digest, size = row.rsplit(",", 2)
            listed[name] = (digest, size)
        assert sorted(listed) == sorted(archive.namelist())
        for name, (digest, size) in listed.items():
            if name.endswith("/RECORD"):
                continue
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={expected}", str(len(data)))


def test_metadata_is_valid_and_has_no_url_requirement(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"{installer.DIST_INFO}/METADATA")
    parsed = Metadata.from_email(text, validate=True)
    assert (parsed.name, str(parsed.version)) == ("detectron2", installer.VERSION)
    assert {"fvcore", "iopath", "setuptools", "black"} <= {r.name for r in parsed.requires_dist}
    assert not any(requirement.url for requirement in parsed.requires_dist)


def test_equal_sdists_give_equal_wheels(sdist, tmp_path):
    (tmp_path / "again").mkdir()
    first = installer.build_wheel(sdist, tmp_path).read_bytes()
    assert first == installer.build_wheel(sdist, tmp_path / "again").read_bytes()


def test_package_imports_without_the_compiled_module(wheel):
    code = """
import detectron2.layers, detectron2.evaluation.fast_eval_api
from detectron2.evaluation.coco_evaluation import COCOeval, COCOeval_opt, COCOEvaluator
print(COCOeval_opt is COCOeval, COCOEvaluator()._use_fast_impl)
try:
    detectron2.layers.deform_conv(1)
except ImportError as error:
    print(error)
"""
    fallback, message = run_python(code, wheel).splitlines()
    assert fallback == "True False"
    assert message.startswith("detectron2._C.deform_conv_forward needs Detectron2's C++ build")


@pytest.fixture
def c_module():
    module = types.ModuleType("detectron2._C")
    exec(installer.C_MODULE, module.__dict__)
    return module


@pytest.mark.parametrize("name", ["nms_rotated", "box_iou_rotated", "COCOevalAccumulate"])
def test_operators_raise_a_clear_import_error(c_module, name):
    with pytest.raises(ImportError, match=rf"_C\.{name} needs .*C\+\+ build.*rotated boxes.*pip"):
        getattr(c_module, name)


def test_introspection_of_the_stand_in_works(c_module):
    assert not hasattr(c_module, "__wrapped__")
    assert not hasattr(c_module, "_repr_html_")
    assert "get_cuda_version" in dict(inspect.getmembers(c_module))
    assert [test.examples for test in doctest.DocTestFinder().find(c_module)] == [[]]
    with pytest.raises(TypeError, match="module"):  # as for any module
        copy.deepcopy(c_module)


def test_environment_report_of_detectron2_can_use_the_stand_in(c_module):
    # collect_env calls these three at the start of every training.
    assert "pure-Python" in c_module.get_compiler_version()
    assert c_module.get_cuda_version() == "not available"
    assert c_module.has_cuda() is False


def test_unknown_source_is_refused(tmp_path):
    tree = {**TREE, "detectron2/evaluation/coco_evaluation.py": "something else"}
    with pytest.raises(installer.InstallError, match=r"not Detectron2 0\.6: .*coco_evaluation"):
        installer.build_wheel(make_sdist(tmp_path, tree), tmp_path)
    assert not list(tmp_path.glob("*.whl*"))


@pytest.mark.parametrize("content", [b"", b"no archive at all"])
def test_damaged_archive_is_a_sentence(tmp_path, content):
    path = tmp_path / installer.SDIST
    path.write_bytes(content)
    with pytest.raises(installer.InstallError, match="cannot be read as a"):
        installer.read_sdist(path)


def test_archive_of_something_else_is_refused(tmp_path):
    with pytest.raises(installer.InstallError, match="holds no detectron2/ and LICENSE"):
        installer.read_sdist(make_sdist(tmp_path, {"setup.py": ""}))


def test_wrong_digest_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(installer.InstallError, match="SHA-256 .* instead of " + installer.SHA256):
        installer.fetch_sdist(tmp_path / "cache", fetch=lambda target: target.write_bytes(b"evil"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_sdist_is_downloaded_once(tmp_path):
    digest = hashlib.sha256(b"good").hexdigest()
    cache = tmp_path / "cache"
    first = installer.fetch_sdist(cache, lambda target: target.write_bytes(b"good"), digest)
    assert first.read_bytes() == b"good"
    assert installer.fetch_sdist(cache, forbidden_fetch, digest) == first


def test_damaged_cache_is_downloaded_again(tmp_path):
    digest = hashlib.sha256(b"good").hexdigest()
    (tmp_path / installer.SDIST).write_bytes(b"half")
    path = installer.fetch_sdist(tmp_path, lambda target: target.write_bytes(b"good"), digest)
    assert path.read_bytes() == b"good"


def test_unwritable_cache_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(installer.InstallError, match=r"cannot be written .*XDG_CACHE_HOME"):
        installer.fetch_sdist(tmp_path / "file" / "cache", fetch=forbidden_fetch)


def test_cache_follows_xdg(tmp_path):
    assert installer.cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "gradaug_det"
    assert installer.cache_dir({}) == Path.home() / ".cache" / "gradaug_det"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine; returns the folder it serves and where it is."""
    served = tmp_path / "index"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"mirror=http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served
        server.shutdown()


def test_download_from_the_configured_index(index, sdist, tmp_path):
    page = index / installer.PROJECT / "index.html"
    page.parent.mkdir()
    page.write_text(f'<a href="/{installer.SDIST}">{installer.SDIST}</a>')
    (index / installer.SDIST).write_bytes(sdist.read_bytes())
    installer.download(tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == sdist.read_bytes()


def test_index_without_the_file_is_a_sentence(index, tmp_path):
    with pytest.raises(installer.InstallError, match="has no project pb1-detectron2"):
        installer.download(tmp_path / "fetched")
    (index / installer.PROJECT).mkdir()
    (index / installer.PROJECT / "index.html").write_text("nothing")
    with pytest.raises(installer.InstallError, match=rf"has no {installer.SDIST}"):
        installer.download(tmp_path / "fetched")


def test_unreachable_index_is_a_sentence_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(installer.InstallError, match=r"ConnectionError.*check the network") as info:
        installer.download(tmp_path / "fetched")
    assert "secret" not in str(info.value)


@pytest.mark.parametrize("key", ["UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"])
def test_index_comes_from_the_environment(key):
    assert installer.configured_index({key: "https://mirror.test/s"}) == "https://mirror.test/s"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Put a package `detectron2` with this text where Python finds it first; forbid fetching."""

    def put(text: str, version: str | None = None) -> None:
        package = tmp_path / "site" / "detectron2"
        (package / "layers").mkdir(parents=True)
        (package / "__init__.py").write_text(text)
        (package / "layers" / "__init__.py").write_text("")
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        monkeypatch.setattr(installer, "installed_version", lambda: version)

    monkeypatch.setattr(installer, "fetch_sdist", forbidden_fetch)
    return put


def test_working_detectron2_is_left_alone(installed, capsys):
    installed("__version__ = '0.7'")
    assert installer.main([]) == 0
    assert "detectron2 0.7 is installed in" in capsys.readouterr().out


def test_broken_detectron2_of_others_is_not_replaced(installed, capsys):
    installed("import no_such_module_of_mine")
    assert installer.main([]) == 1
    error = capsys.readouterr().err
    assert "no_such_module_of_mine" in error
    assert "repair it, or uninstall it" in error


def test_older_wheel_of_ours_is_replaced(installed, known_sdist, monkeypatch):
    installed("__version__ = '0.6'", version="0.6+gradaug.0")
    done = []
    monkeypatch.setattr(installer, "install", lambda wheel: done.append(wheel.name))
    assert installer.setup(known_sdist).startswith("installed detectron2")
    assert done == [installer.WHEEL]


def test_sdist_of_the_user_is_checked(monkeypatch, tmp_path, sdist, capsys):
    monkeypatch.setattr(installer, "probe", lambda: (None, ""))
    assert installer.main(["--sdist", str(tmp_path / "nowhere.tar.gz")]) == 1
    assert "there is no file" in capsys.readouterr().err
    assert installer.main(["--sdist", str(sdist)]) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_real_installer_accepts_the_wheel(wheel, tmp_path, monkeypatch):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    command = installer.install_command(wheel, python)
    if command[0] == python:
        pytest.skip("needs uv: the environment has no pip")
    assert installer.probe(python) == (None, "")
    subprocess.run(command, check=True, capture_output=True)
    version, where = installer.probe(python)
    assert version == "0.6"
    assert Path(where).is_relative_to(environment)
    code = "from importlib.metadata import version; print(version('detectron2'))"
    assert run_python(code, tmp_path / "empty", python).strip() == installer.VERSION


def test_failed_install_is_a_sentence(monkeypatch, tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('error: read-only')"]
    monkeypatch.setattr(installer, "install_command", lambda wheel: command)
    with pytest.raises(installer.InstallError, match=r"could not be installed.*error: read-only"):
        installer.install(tmp_path / installer.WHEEL)
