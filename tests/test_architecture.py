"""The rules of docs/architecture.md: who imports whom, nothing loaded is executed, the picture is true."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = {"drift_policy", "envs", "image_gen", "benchmarks", "examples", "tests"}
ENTRY_SCRIPTS = ("train_policy.py", "eval_policy.py")
PACKAGES = ("drift_policy", "envs", "image_gen")
IMAGE_SCRIPTS = tuple(f"image_gen/{name}.py" for name in ("train", "train_mae", "sample", "evaluate"))
SOURCES = sorted([*(path for p in PACKAGES for path in (ROOT / p).rglob("*.py")), *(ROOT / s for s in ENTRY_SCRIPTS)])
CORE_PACKAGES = {"torch", "numpy", "einops", "safetensors", "omegaconf"}
# The reader of Diffusion Policy's checkpoints takes a pickle apart without running it, which needs the module. What it
# may do with it is checked below.
RESTRICTED_UNPICKLER = "drift_policy/integrations/diffusion_policy/legacy_pickle.py"
EXECUTING_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(node: ast.AST, package: str) -> Iterator[str]:
    """Give the full names of the modules that `node` and everything in it import."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            yield ".".join([*base, child.module] if child.module else base)


def imports_of(path: Path) -> set[str]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return set(imported_modules(ast.parse(path.read_text()), package))


def executing_calls(source: str) -> list[str]:
    """Name everything in `source` that could execute what it loads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = set(imported_modules(node, ""))
            found += sorted(modules & EXECUTING_MODULES)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe = (
                name in ("eval", "exec", "yaml.load", "yaml.unsafe_load")
                or keywords.get("allow_pickle", "False") != "False"
                or keywords.get("weights_only", "True") != "True"
                or (name == "torch.load" and "weights_only" not in keywords)
            )
            found += [name] if unsafe else []
    return found


def picture_entries() -> list[str]:
    """Give the paths that the first code block of docs/architecture.md draws, by its indentation."""
    block = re.search(r"```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert block is not None
    entries: list[str] = []
    folders: list[str] = []
    for line in block.group(1).splitlines():
        indent, name = re.match(r"( *)(\S+) {2,}\S", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 4]
        entries.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return entries


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("drift_policy", {"drift_policy"}),
        ("envs", {"envs", "drift_policy"}),
        ("image_gen", {"image_gen", "drift_policy"}),
    ],
)
def test_imports_point_one_way(package: str, allowed: set[str]) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    wrong = {
        relative(path): sorted(name for name in imports_of(path) if name.split(".")[0] in PROJECT - allowed)
        for path in paths
    }
    assert {path: names for path, names in wrong.items() if names} == {}


def test_the_mathematics_needs_torch_alone() -> None:
    allowed = sys.stdlib_module_names | {"torch"}
    paths = sorted((ROOT / "drift_policy" / "drift").rglob("*.py"))
    assert paths
    for path in paths:
        for name in imports_of(path):
            assert name.split(".")[0] in allowed or name.startswith("drift_policy.drift"), f"{relative(path)}: {name}"


def test_images_use_the_mathematics_and_never_the_policies() -> None:
    policies = re.compile(r"drift_policy\.(policy|heads|networks|encoders|runtime|evaluation|task|serialization)")
    for path in sorted((ROOT / "image_gen").rglob("*.py")):
        assert [name for name in imports_of(path) if policies.match(name)] == [], relative(path)


@pytest.mark.parametrize("folder", ["heads", "networks", "encoders"])
def test_the_parts_of_a_policy_know_no_training_and_no_data_files(folder: str) -> None:
    above = re.compile(r"drift_policy\.(training|evaluation|data\.(?!normalizer)|task|cli|manifest)")
    for path in sorted((ROOT / "drift_policy" / folder).rglob("*.py")):
        assert [name for name in imports_of(path) if above.match(name)] == [], relative(path)


@pytest.mark.parametrize("script", [*ENTRY_SCRIPTS, *IMAGE_SCRIPTS])
def test_entry_scripts_are_short(script: str) -> None:
    assert len((ROOT / script).read_text().splitlines()) < 60


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_that_is_loaded_is_executed(path: Path) -> None:
    assert executing_calls(path.read_text()) == (["pickle"] if relative(path) == RESTRICTED_UNPICKLER else [])


def test_the_one_unpickler_looks_nothing_up() -> None:
    """It uses pickle for a subclass and its error alone, and its `find_class` neither imports nor asks its parent."""
    tree = ast.parse((ROOT / RESTRICTED_UNPICKLER).read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler", "pickle.UnpicklingError"}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    (unpickler,) = [node for node in classes if "pickle.Unpickler" in map(ast.unparse, node.bases)]
    (find_class,) = [node for node in unpickler.body if isinstance(node, ast.FunctionDef) and node.name == "find_class"]
    called = {ast.unparse(node.func) for node in ast.walk(find_class) if isinstance(node, ast.Call)}
    assert called == {"self._allowed.get", "Placeholder"}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"getattr", "setattr", "__import__", "import_module", "globals", "vars"}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "yaml.load(text)",
    ],
)
def test_the_search_for_executing_calls_finds_them(source: str) -> None:
    assert len(executing_calls(source)) == 1


def test_the_search_for_executing_calls_spares_harmless_ones() -> None:
    assert executing_calls("policy.eval()\nnp.load(p, allow_pickle=False)\ntorch.load(p, weights_only=True)") == []


def test_the_picture_of_the_house_is_true() -> None:
    entries = picture_entries()
    assert "drift_policy/data/readers/" in entries, "the picture could not be read"
    missing = [e for e in entries if not ((ROOT / e).is_dir() if e.endswith("/") else (ROOT / e).is_file())]
    assert missing == []


def test_the_picture_of_the_house_is_complete() -> None:
    packages = {f"{relative(path.parent)}/" for path in SOURCES if path.name == "__init__.py"}
    assert packages - set(picture_entries()) == set()


def test_the_core_dependencies_are_the_documented_ones() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert set(re.findall(r'^\s*"([A-Za-z0-9_-]+)', block.group(1), re.MULTILINE)) == CORE_PACKAGES
