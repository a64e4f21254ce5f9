"""The rules of ARCHITECTURE.md that a machine can check, read from the source tree with `ast`."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrs.backends.cupy import Cupy
from qrs.backends.reference import OPERATIONS, Reference
from qrs.backends.rust import Rust

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "python" / "qrs"
RUST = ROOT / "rust"

# Lowest first. A module may import from its own row, and from those above it in this list.
LAYERS = (
    {"errors", "constants", "checks", "convolution", "devices", "float_formats"},
    {"codebooks", "_qrs"},
    {"backends"},
    {"arrays", "granularity", "metrics", "statistics", "qtensor"},
    {"schemes", "observers"},
    {"solvers", "formats"},
    {"api", "calibration", "clustering", "floats"},
    {""},  # qrs/__init__.py: the public names
    {"nn"},
    {"torch"},
    {"checkpoint"},
    {"cli", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# `QTensor.from_parts("int8", ...)` parses a string of a layer higher up when it is called.
SHORT_FORMS = {("qtensor", "schemes")}
MAX_LINES = 420
MAX_FUNCTION_LINES = 50


def modules() -> list[Path]:
    return sorted(PYTHON.rglob("*.py"))


def dotted(path: Path) -> str:
    """`python/qrs/backends/rust.py` -> `qrs.backends.rust`."""
    parts = ("qrs", *path.relative_to(PYTHON).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {dotted(path) for path in modules()} | {"qrs._qrs"}


def nodes(path: Path, *, module_level: bool = False) -> Iterator[ast.AST]:
    """Every node that can run, or only those that run when the module is imported."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif not (module_level and isinstance(node, ast.FunctionDef | ast.Lambda)):
            pending += ast.iter_child_nodes(node)


def imports(path: Path, *, module_level: bool = False) -> set[str]:
    """Dotted names of the modules that `path` imports, relative imports resolved."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path).rpartition(".")[0]
    found: set[str] = set()
    for node in nodes(path, module_level=module_level):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            origin = importlib.util.resolve_name(module, package)
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in KNOWN else origin for name in names}
    return found


def part(module: str) -> str:
    """The row of LAYERS that a module of qrs is in: `qrs.backends.rust` -> `backends`."""
    return module.split(".")[1] if "." in module else ""


def is_ours(module: str) -> bool:
    return module == "qrs" or module.startswith("qrs.")


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_only_go_down(path: Path) -> None:
    here = part(dotted(path))
    assert here in RANK, f"give {here} a row in LAYERS"
    when_imported = imports(path, module_level=True)
    for module in filter(is_ours, imports(path)):
        short_form = (here, part(module)) in SHORT_FORMS and module not in when_imported
        assert RANK[part(module)] <= RANK[here] or short_form, module


def test_no_import_cycles() -> None:
    graph = {dotted(p): {m for m in imports(p, module_level=True) if is_ours(m)} for p in modules()}
    while leaves := {m for m, needs in graph.items() if not (needs - {m}) & graph.keys()}:
        graph = {m: needs for m, needs in graph.items() if m not in leaves}
    assert graph == {}, "these import each other in a circle"


def test_formats_never_compute() -> None:
    for path in (PYTHON / "formats").glob("*.py"):
        assert not [m for m in imports(path) if m.startswith("qrs.backends")], path


def test_schemes_and_backends_never_read_files() -> None:
    for folder in ("schemes", "backends"):
        for path in (PYTHON / folder).rglob("*.py"):
            assert not imports(path) & {"io", "mmap", "pathlib", "qrs.formats"}, path


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("typer", {"cli"}), ("rich", {"cli", "checkpoint"}), ("torch", {"torch"})],
)
def test_libraries_stay_in_their_place(library: str, allowed: set[str]) -> None:
    users = {part(dotted(p)) for p in modules() if library in {m.split(".")[0] for m in imports(p)}}
    assert users <= allowed


def test_nothing_imports_a_gpu_library_at_module_level() -> None:
    for path in modules():
        roots = {name.split(".")[0] for name in imports(path, module_level=True)}
        allowed = {"torch"} if part(dotted(path)) == "torch" else set()
        assert not roots & {"cupy", "torch"} - allowed, path


def test_import_qrs_is_light() -> None:
    code = "import sys, qrs; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"cupy", "torch", "typer", "rich", "safetensors"}


def operations(backend: type) -> set[str]:
    """The public methods of a backend, in whichever of its classes, but for those inherited."""
    own = (vars(part) for part in backend.__mro__ if part not in Reference.__mro__)
    found = ((n, f) for methods in own for n, f in methods.items())
    return {n for n, f in found if inspect.isfunction(f) and not n.startswith("_")}


@pytest.mark.parametrize("backend", [Rust, Cupy])
@pytest.mark.parametrize("name", OPERATIONS)
def test_overrides_keep_the_signatures_of_reference(name: str, backend: type) -> None:
    assert inspect.signature(getattr(backend, name)) == inspect.signature(getattr(Reference, name))


@pytest.mark.parametrize("backend", [Rust, Cupy])
def test_backends_add_no_operations_of_their_own(backend: type) -> None:
    assert operations(backend) <= set(OPERATIONS)


def test_one_name_through_all_layers() -> None:
    kernels = "".join(path.read_text() for path in rust_files() if not is_binding(path))
    binding = "".join(path.read_text() for path in rust_files() if is_binding(path))
    stub = (PYTHON / "_qrs.pyi").read_text()
    assert "quantize_affine" in operations(Rust)
    for name in operations(Rust):
        assert re.search(rf"\bfn {name}\b", kernels), f"no kernel {name}"
        assert re.search(rf"\bfn {name}\b", binding), f"no binding {name}"
        assert re.search(rf"^def {name}\b", stub, re.MULTILINE), f"no stub {name}"


def test_one_copy_of_each_table() -> None:
    copies = defaultdict(set)
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.List | ast.Tuple | ast.Dict | ast.Set):
                items = node.values if isinstance(node, ast.Dict) else node.elts
                if len(items) >= 3 and all(isinstance(item, ast.Constant) for item in items):
                    copies[ast.dump(node)].add(dotted(path))
    assert not {table: where for table, where in copies.items() if len(where) > 1}


def rust_code(path: Path) -> list[str]:
    """The lines of a Rust file without their comments."""
    return [line.split("//")[0] for line in path.read_text(encoding="utf-8").splitlines()]


def rust_files() -> list[Path]:
    return sorted(RUST.rglob("*.rs"))


def is_binding(path: Path) -> bool:
    return path.name == "py.rs" or path.parent.name == "py"


def test_only_py_rs_knows_python() -> None:
    users = {p for p in rust_files() if re.search(r"\b(pyo3|numpy)\b", "\n".join(rust_code(p)))}
    assert {p for p in users if not is_binding(p)} == set()
    assert users


def test_only_rows_rs_knows_threads() -> None:
    pattern = r"\brayon\b|\bthread::(spawn|scope|Builder)"
    users = {p.name for p in rust_files() if re.search(pattern, "\n".join(rust_code(p)))}
    assert users == {"rows.rs"}


def test_unsafe_stays_in_its_place_and_says_why() -> None:
    unexplained = []
    for path in rust_files():
        code, text = rust_code(path), path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(code):
            if re.search(r"\bunsafe\b", line) and not re.search(r"#!?\[", line):
                places = {"simd.rs", "x86.rs", "f16c.rs", "lookup.rs"}
                places |= {"dot_x86.rs", "avx2.rs", "avx512.rs", "amx.rs", "amx_emulator.rs"}
                assert path.name in places or is_binding(path), (path, number)
                before = "\n".join(text[max(0, number - 12) : number + 1])
                if not re.search(r"SAFETY:|# Safety", before):
                    unexplained.append(f"{path.name}:{number + 1}")
    assert unexplained == []


def test_files_are_short() -> None:
    folders = ("python", "rust", "tests", "benches", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.*")]
    sources = [path for path in files if path.suffix in {".py", ".pyi", ".rs", ".cu", ".cuh", ".h"}]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources}
    assert len(lengths) > 20
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_functions_are_short() -> None:
    long = {}
    for path in modules():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef):
                body = node.body[ast.get_docstring(node) is not None :] or node.body
                lines = int(node.end_lineno or 0) - body[0].lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{dotted(path)}.{node.name}"] = lines
    assert long == {}
