"""House rules that no linter knows: sizes, names, docstrings, and where torch may be imported."""

import ast
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("eplbd", "policies", "plugins", "tests")
FORBIDDEN_NAMES = {"utils", "common", "helpers", "manager", "base", "state"}
FILE_LINES = 400
FUNCTION_LINES = 50
_TORCH = (
    "eplbd/worker/torch_",
    "eplbd/offline/formats/torch_",
    "eplbd/demo/",
    "plugins/vllm/eplbd_vllm/torch_",
    "plugins/vllm/eplbd_vllm/ascend/engine.py",  # names types alone
    "plugins/vllm/eplbd_vllm/ascend/torch_",
    "plugins/vllm/eplbd_vllm/demo/torch_",
    "plugins/vllm/eplbd_vllm/selection.py",
    "plugins/vllm/eplbd_vllm/upstream.py",  # names types alone
    "tests/",
)


def sources() -> list[Path]:
    """Every Python file of the repository, ours only: an environment inside it would not count."""
    found = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    assert REPOSITORY / "eplbd/__init__.py" in found, "looking in the wrong place"
    return sorted(path for path in found if not {".venv", "build"} & set(path.parts))


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    """Each source as `(path below the repository, syntax tree)`."""
    return tuple(
        (str(path.relative_to(REPOSITORY)), ast.parse(path.read_bytes(), str(path)))
        for path in sources()
    )


def imported(node: ast.AST) -> list[str]:
    """Modules that an import statement names; none for any other node."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module]
        case _:
            return []


def test_files_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    long = [
        f"{path.relative_to(REPOSITORY)}: {n} lines" for path, n in lines.items() if n >= FILE_LINES
    ]
    assert not long, "\n".join(long)


def test_functions_are_short() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 >= FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_files_and_folders_are_nouns_of_the_domain() -> None:
    named = [
        str(relative)
        for relative in (path.relative_to(REPOSITORY) for path in sources())
        if FORBIDDEN_NAMES & {part.removesuffix(".py").strip("_") for part in relative.parts}
    ]
    assert not named, "\n".join(named)


def test_every_module_says_what_it_owns() -> None:
    silent = [path for path, tree in trees() if not ast.get_docstring(tree)]
    assert not silent, "\n".join(silent)


def test_torch_stays_in_the_files_named_after_it() -> None:
    strays = [
        f"{path} imports {name}"
        for path, tree in trees()
        if not path.startswith(_TORCH)
        for node in ast.walk(tree)
        for name in imported(node)
        if name.partition(".")[0] == "torch"
    ]
    assert not strays, "\n".join(strays)


def test_no_thread_keeps_its_process_from_ending() -> None:
    """One that a failed test or a stopped daemon left behind would do so for ever."""
    keeping = [
        f"{path}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "threading.Thread"
        and "daemon" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not keeping, "\n".join(keeping)
