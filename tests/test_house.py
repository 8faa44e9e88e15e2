"""The rules of the house (docs/design.md): who may import whom, what files are called, what stands where.

Each rule is a function from a folder to sentences that name what is wrong. It is held against this
repository, and against a small tree that breaks it: so each guard has been seen to fail.
"""

import ast
import dataclasses
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

REPOSITORY = Path(__file__).resolve().parent.parent

# The layers of runner/, lowest first: a file imports its own layer and those below. A folder stands for all its files;
# a file not named here is taken for one of the layer "torch".
LAYERS = {
    "plain": {
        "errors",
        "energy",
        "settings",
        "config",
        "recipe",
        "registry",
        "lanes",
        "schedule",
        "log",
        "signals",
        "report",
    }
    | {"progress", "watching", "energy", "collecting"}
    | {"fields", "command_line", "yaml_file", "other_tools", "help_page"}
    | {"run_folder", "urls", "parts", "checkpoints.state", "checkpoints.pointers", "checkpoints.disk"},
    "torch": {"optim", "tree", "memory", "deferred", "sharding", "checkpoints.tensors"},
    "accelerate": {
        "ending",
        "hardware",
        "precision",
        "evaluation",
        "fetching",
        "run",
        "agreement",
        "step",
        "tracking",
        "loop",
    }
    | {"checkpoints.folders", "checkpoints.bucket", "checkpoints.saver", "checkpoints.final"},
    "run": {
        "assembly",
        "session",
        "preflight",
        "checkpoints.recorded",
        "checkpoints.branches",
        "checkpoints.resume",
        "checkpoints.trained",
    },
    "entry": {"train", "trials", "commands", "__main__"},
}
KNOW_ACCELERATE = {"hardware", "evaluation"}
# What a plain file may import beyond the standard library and numpy, and then only inside a function.
PLAIN_EXTRAS = {
    "energy": {"torch"},
    "config": {"tyro", "yaml"},
    "yaml_file": {"yaml"},
    "report": {"yaml"},
    "progress": {"rich"},
    "registry": {"recipes"},
    "run_folder": {"filelock"},
    "parts.counting": {"tqdm"},
    "parts.adapters": {"peft", "safetensors", "torch", "xxhash"},
    "parts.pretrained": {"huggingface_hub", "safetensors", "torch", "transformers"},
    "parts.upcycling": {"torch", "transformers"},
    "parts.expert_adapters": {"peft", "torch", "transformers"},
    "parts.chunked_loss": {"torch"},
    "parts.fingerprints": {"fsspec", "xxhash"},
}
# The defaults of the contract load and write weights, with what only those who call them have imported.
UPWARD = {("recipe", "checkpoints.tensors.load_model"), ("recipe", "checkpoints.tensors.save_model")}
OPEN_TO_RECIPES = {"recipe", "errors", "parts"}
# These take a second or more to import: --help imports recipe.py and presets.py, and must answer at once.
HEAVY = {
    "accelerate",
    "datasets",
    "evaluate",
    "pandas",
    "peft",
    "scipy",
    "skbio",
    "sklearn",
    "torch",
    "transformers",
}
HEAVY |= {"biom", "matplotlib", "sqlglot", "tokenizers", "wandb"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
TOP_LEVEL = {"pyproject.toml", "runner", "recipes", "accelerate_configs", "tests", "docs"}
TOP_LEVEL |= {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "constraints.txt", ".ci", ".gitignore"}
TOP_LEVEL |= {"Dockerfile", ".dockerignore"}
TOP_LEVEL |= {"CONTRIBUTING.md", ".pre-commit-config.yaml"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, its line, whether it is imported when the file is."""

    name: str
    line: int
    at_module_level: bool

    @property
    def package(self) -> str:
        """The first part of the name."""
        return self.name.partition(".")[0]


def imports_of(path: Path, root: Path) -> list[Import]:
    """Every import of a file but those for type checkers only; relative ones by their full name."""
    found: list[Import] = []
    package = list(path.relative_to(root).parent.parts)

    def visit(node: ast.AST, at_module_level: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            # `from runner import loop` imports runner.loop: name what is imported, not only from where.
            found.extend(Import(f"{module}.{alias.name}", node.lineno, at_module_level) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, at_module_level)
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                visit(child, at_module_level and not inside)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)
    return found


def python_files(root: Path, *folders: str) -> Iterator[Path]:
    """Every .py file of the folders, in order."""
    for folder in folders:
        yield from sorted((root / folder).rglob("*.py"))


def place(path: Path, root: Path, an_import: Import) -> str:
    """File and line, as an editor jumps to it."""
    return f"{path.relative_to(root).as_posix()}:{an_import.line}"


def layer_of(name: str) -> int:
    """The height of a module of runner/, by its name below `runner`, or by the folder that it is in."""
    parts = name.split(".")
    for known in (".".join(parts[:2]), parts[0]):
        for height, members in enumerate(LAYERS.values()):
            if known in members:
                return height
    return list(LAYERS).index("torch")


def runner_imports_only_its_layer_and_below(root: Path) -> list[str]:
    wrong = []
    for path in python_files(root, "runner"):
        own = ".".join(path.relative_to(root / "runner").with_suffix("").parts)
        for each in imports_of(path, root):
            target = each.name.partition(".")[2] if each.package == "runner" else None
            # A package's own __init__ is of no layer.
            if path.name == "__init__.py" or not target or (own, target) in UPWARD and not each.at_module_level:
                continue
            if layer_of(target) > layer_of(own):
                wrong.append(f"{place(path, root, each)} imports runner.{target}, which is a layer above it")
    return wrong


def import_graph(root: Path) -> dict[str, set[str]]:
    """The modules of runner/ and recipes/, and which of each other they import: at the top, in functions, for types."""
    files = {}
    for path in python_files(root, "runner", "recipes"):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                # The package itself, for a relative import of one dot.
                start = list(path.relative_to(root).parent.parts)[: -(node.level - 1) or None] if node.level else []
                module = ".".join([*start, *([node.module] if node.module else [])])
                found = [f"{module}.{alias.name}" if f"{module}.{alias.name}" in files else module
                         for alias in node.names]  # fmt: skip
            else:
                continue
            graph[name] |= {each for each in found if each in files}
    return graph


def no_import_goes_in_a_circle(root: Path) -> list[str]:
    graph = import_graph(root)
    done: set[str] = set()
    wrong: list[str] = []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            wrong.append(f"imports go in a circle: {' -> '.join([*trail[trail.index(name) :], name])}")
        elif name not in done:
            for each in sorted(graph[name]):
                visit(each, [*trail, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return wrong


MOST_LINES = 80
# A table of phrasings, by database.
LONG_FUNCTIONS = {"recipes/text2sql/data/demo.py:_ask"}


def functions_are_short(root: Path) -> list[str]:
    wrong = []
    for path in python_files(root, "runner", "recipes"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                where = f"{path.relative_to(root).as_posix()}:{node.name}"
                if lines > MOST_LINES and where not in LONG_FUNCTIONS:
                    wrong.append(f"{where} has {lines} lines, and {MOST_LINES} are the most")
    return wrong


def plain_layer_is_plain(root: Path) -> list[str]:
    wrong = []
    plain_files = (path for path in python_files(root, "runner") if path.name != "__init__.py")
    for path in plain_files:
        name = ".".join(path.relative_to(root / "runner").with_suffix("").parts)
        for each in imports_of(path, root) if layer_of(name) == 0 else []:
            extra = each.package in PLAIN_EXTRAS.get(name, set()) and not each.at_module_level
            plain = each.package in sys.stdlib_module_names or each.package in {"numpy", "runner"}
            if not plain and not extra:
                wrong.append(
                    f"{place(path, root, each)} imports {each.package}: "
                    "the plain layer has the standard library and numpy"
                )
    return wrong


def only_two_files_know_accelerate(root: Path) -> list[str]:
    wrong = []
    for path in python_files(root, "runner"):
        name = path.relative_to(root / "runner").with_suffix("").as_posix()
        for each in imports_of(path, root):
            if each.package == "accelerate" and name not in KNOW_ACCELERATE:
                wrong.append(f"{place(path, root, each)} imports accelerate; {', '.join(sorted(KNOW_ACCELERATE))} may")
    return wrong


def runner_knows_no_recipe(root: Path) -> list[str]:
    return [
        f"{place(path, root, each)} imports {each.name}: the runner finds recipes, it knows none"
        for path in python_files(root, "runner")
        for each in imports_of(path, root)
        if each.name.startswith("recipes.")
    ]


def recipes_keep_to_the_contract(root: Path) -> list[str]:
    wrong = []
    for path in python_files(root, "recipes"):
        parts = path.relative_to(root / "recipes").parts
        for each in imports_of(path, root):
            words = [*each.name.split("."), ""]
            if each.package == "runner" and words[1] not in OPEN_TO_RECIPES:
                wrong.append(f"{place(path, root, each)} imports {each.name}: of the runner, only recipe and errors")
            if each.package == "accelerate":
                wrong.append(f"{place(path, root, each)} imports accelerate: that is the runner's business")
            if each.package == "recipes" and words[1] != parts[0]:
                wrong.append(f"{place(path, root, each)} imports {each.name}: recipes do not know each other")
    return wrong


def help_is_quick(root: Path) -> list[str]:
    wrong = []
    for path in python_files(root, "recipes"):
        for each in imports_of(path, root):
            if (
                path.name in ("recipe.py", "presets.py", "settings.py")
                and each.at_module_level
                and each.package in HEAVY
            ):
                wrong.append(f"{place(path, root, each)} imports {each.package} for --help: import it where it is used")
    return wrong


def names_say_something(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root).as_posix()} is called {path.stem}, which says nothing of what is in it"
        for folder in ("runner", "recipes", "tests")
        for path in sorted((root / folder).rglob("*"))
        if path.stem in FORBIDDEN_NAMES and "__pycache__" not in path.parts
    ]


def runner_shadows_no_package(root: Path) -> list[str]:
    """`python runner/train.py` puts runner/ first on the path, before the library of a file's name."""
    used = {each.package for path in python_files(root, "runner", "recipes") for each in imports_of(path, root)}
    taken = (used | HEAVY | sys.stdlib_module_names) - {"runner", "recipes", "__main__"}
    return [
        f"runner/{path.name} would be imported instead of the package {path.stem}"
        for path in sorted((root / "runner").iterdir())
        if path.stem in taken and (path.suffix == ".py" or (path / "__init__.py").exists())
    ]


def nothing_else_at_the_top(root: Path) -> list[str]:
    # What git does not track is the user's own, such as the data of the tutorial.
    command = ["git", "ls-files", "--cached"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        # An archive of the files, without git: nothing there is ignored, caches apart.
        listed = [path.name for path in root.iterdir() if not path.name.startswith(".") and path.name != "runs"]
        listed = [name for name in listed if not name.endswith((".egg-info", "__pycache__"))]
    strays = {line.partition("/")[0] for line in listed} - TOP_LEVEL
    return [f"{name} stands at the top level, which is fixed" for name in sorted(strays)]


def launch_configs_are_sound(root: Path) -> list[str]:
    wrong = []
    for path in sorted((root / "accelerate_configs").glob("*")):
        name = f"accelerate_configs/{path.name}"
        text = path.read_text(encoding="utf-8")
        if not text.isascii():
            wrong.append(f"{name} is not ASCII: accelerate reads it in the machine's own encoding")
        if not text.startswith(
            (f"# accelerate launch --config_file {name} ", "# torchrun ", "# sbatch ", "# kubectl ")
        ):
            wrong.append(f"{name} does not begin with the command that uses it")
        if path.suffix not in (".yaml", ".yml"):
            continue
        try:
            settings = yaml.safe_load(text)
        except yaml.YAMLError as error:
            wrong.append(f"{name} is not YAML: {error}")
            continue
        if not isinstance(settings, dict) or not {"distributed_type", "num_processes"} <= settings.keys():
            wrong.append(f"{name} does not say distributed_type and num_processes")
        elif settings["distributed_type"] == "MULTI_CPU":
            wrong.append(f"{name} says MULTI_CPU, which starts one process, silently: say MULTI_GPU with use_cpu")
    return wrong


def imports_are_declared(root: Path) -> list[str]:
    """Every library that runner/ or recipes/ import is a dependency, or in an extra, of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [requirement for extra in project.get("optional-dependencies", {}).values() for requirement in extra]
    declared = {
        re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")
        for requirement in [*project["dependencies"], *extras]
    }
    distributions = importlib.metadata.packages_distributions()
    # Libraries of extras, where they are not installed.
    known = {
        "sklearn": ["scikit-learn"],
        "skbio": ["scikit-bio"],
        "biom": ["biom-format"],
        "yaml": ["PyYAML"],
    }
    wrong = []
    for path in python_files(root, "runner", "recipes"):
        for each in imports_of(path, root):
            if each.package in sys.stdlib_module_names or each.package in ("runner", "recipes"):
                continue
            providers = known.get(each.package) or distributions.get(each.package) or [each.package]
            if not declared & {name.lower().replace("_", "-") for name in providers}:
                wrong.append(f"{place(path, root, each)} imports {each.package}, which pyproject.toml does not name")
    return wrong


def lines_with(root: Path, pattern: re.Pattern[str], fault: str) -> list[str]:
    """A sentence for each line of a text file in which the pattern is found."""
    wrong = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        written = path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".sh"} or path.name in {
            "Makefile",
            "run",
        }
        # `make docs` writes its copies into _generated.
        if parts[0] not in TOP_LEVEL or "_generated" in parts or not path.is_file() or not written:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                where = f"{path.relative_to(root).as_posix()}:{number}"
                wrong.append(f"{where} {fault}: {line.strip()}")
    return wrong


# Both patterns are put together here, so that this file does not break its own rules.
def no_paths_of_one_machine(root: Path) -> list[str]:
    pattern = re.compile(r"(?<![\w./~-])/(?:" + "|".join(["work", "tmp", "home", "root", "Users"]) + r")/\w")
    return lines_with(root, pattern, "names a path of one machine")


def no_merge_is_left_half_done(root: Path) -> list[str]:
    pattern = re.compile("|".join([f"^{'<' * 7} ", f"^{'=' * 7}$", f"^{'>' * 7} "]))
    return lines_with(root, pattern, "marks a conflict of a merge")


def ci_installs_what_is_pinned(root: Path) -> list[str]:
    """.ci/requirements.txt, with hashes, has the versions of constraints.txt and all that the tests need."""
    locked, constraints = root / ".ci" / "requirements.txt", root / "constraints.txt"
    if not constraints.is_file():
        return []
    pin = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", re.MULTILINE)

    def pins(path: Path) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name, version in pin.findall(path.read_text(encoding="utf-8") if path.is_file() else ""):
            found.setdefault(re.sub("[-_.]+", "-", name).lower(), set()).add(version)
        return found

    wanted, found = pins(constraints), pins(locked)
    wrong = [
        f"{name} {', '.join(sorted(wanted[name] - versions))} is in constraints.txt and not in .ci/requirements.txt"
        for name, versions in sorted(found.items())
        if not wanted.get(name, set()) <= versions
    ]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    own = re.match(r"[\w.-]+\[(.*)\]", next((each for each in extras.get("test", []) if "[" in each), ""))
    needed = [*project["dependencies"], *extras.get("test", [])]
    for extra in own.group(1).split(",") if own else ():
        needed += extras.get(extra, [])
    for requirement in needed:
        name = re.sub("[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()
        if name not in found and name != "torch" and not requirement.startswith(project.get("name", "relay-train")):
            wrong.append(f"{name} is in pyproject.toml and not in .ci/requirements.txt")
    return [f"{sentence}: run .ci/lock (pip install uv)" for sentence in wrong]


RULES: list[Callable[[Path], list[str]]] = [
    no_import_goes_in_a_circle,
    functions_are_short,
    runner_imports_only_its_layer_and_below,
    plain_layer_is_plain,
    only_two_files_know_accelerate,
    runner_knows_no_recipe,
    recipes_keep_to_the_contract,
    help_is_quick,
    names_say_something,
    runner_shadows_no_package,
    nothing_else_at_the_top,
    launch_configs_are_sound,
    imports_are_declared,
    no_paths_of_one_machine,
    no_merge_is_left_half_done,
    ci_installs_what_is_pinned,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(rule: Callable[[Path], list[str]]) -> None:
    wrong = rule(REPOSITORY)
    assert not wrong, "\n".join(wrong)


PROJECT = '[project]\ndependencies = ["numpy", "torch>=2.9", "accelerate"]\n'
# (the rule, the file that breaks it, its text, a part of the sentence that says so)
VIOLATIONS = [
    (
        no_import_goes_in_a_circle,
        "recipes/mine/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from recipes.mine import b\n"
        "def f():\n    from recipes.mine.a import f",
        "recipes.mine.a -> recipes.mine.b -> recipes.mine.a",
    ),
    (functions_are_short, "runner/loop.py", "def f():\n" + "    x = 1\n" * 80, "has 81 lines"),
    (runner_imports_only_its_layer_and_below, "runner/lanes.py", "from runner import loop", "a layer above"),
    (
        runner_imports_only_its_layer_and_below,
        "runner/optim.py",
        "from runner.session import run",
        "a layer above",
    ),
    (
        runner_imports_only_its_layer_and_below,
        "runner/loop.py",
        "def f():\n    from . import train",
        "a layer above",
    ),
    (plain_layer_is_plain, "runner/schedule.py", "import torch", "imports torch"),
    (plain_layer_is_plain, "runner/lanes.py", "def f():\n    from torch import nn", "imports torch"),
    (plain_layer_is_plain, "runner/config.py", "import tyro", "imports tyro"),
    (plain_layer_is_plain, "runner/config.py", "if True:\n    import yaml", "imports yaml"),
    (
        only_two_files_know_accelerate,
        "runner/optim.py",
        "from accelerate import Accelerator",
        "imports accelerate",
    ),
    (
        only_two_files_know_accelerate,
        "runner/commands/loop.py",
        "import accelerate.utils",
        "imports accelerate",
    ),
    (runner_knows_no_recipe, "runner/registry.py", "import recipes.text2sql.recipe", "it knows none"),
    (runner_knows_no_recipe, "runner/loop.py", "def f():\n    from recipes import text2sql", "it knows none"),
    (
        recipes_keep_to_the_contract,
        "recipes/mine/model.py",
        "from runner.loop import train",
        "only recipe and errors",
    ),
    (
        recipes_keep_to_the_contract,
        "recipes/mine/data.py",
        "from runner import hardware",
        "only recipe and errors",
    ),
    (recipes_keep_to_the_contract, "recipes/mine/model.py", "import accelerate", "the runner's business"),
    (
        recipes_keep_to_the_contract,
        "recipes/mine/data.py",
        "from recipes.yours import data",
        "know each other",
    ),
    (recipes_keep_to_the_contract, "recipes/mine/data.py", "from ..yours import data", "know each other"),
    (help_is_quick, "recipes/mine/recipe.py", "import numpy\nimport torch", "recipe.py:2 imports torch"),
    (
        help_is_quick,
        "recipes/mine/presets.py",
        "from transformers import MixtralConfig",
        "imports transformers",
    ),
    (names_say_something, "runner/utils.py", "", "says nothing"),
    (names_say_something, "recipes/mine/helpers/sql.py", "", "says nothing"),
    (runner_shadows_no_package, "runner/evaluate.py", "", "instead of the package evaluate"),
    (runner_shadows_no_package, "runner/datasets/__init__.py", "", "instead of the package datasets"),
    (runner_shadows_no_package, "runner/logging.py", "", "instead of the package logging"),
    (nothing_else_at_the_top, "scripts/try.py", "", "scripts stands at the top level"),
    (
        launch_configs_are_sound,
        "accelerate_configs/a.yaml",
        "num_processes: 2",
        "does not begin with the command",
    ),
    (launch_configs_are_sound, "accelerate_configs/a.yaml", "a: [1", "is not YAML"),
    (
        launch_configs_are_sound,
        "accelerate_configs/a.yaml",
        "num_processes: 2",
        "does not say distributed_type",
    ),
    (launch_configs_are_sound, "accelerate_configs/a.yaml", "# two \u2013 processes", "is not ASCII"),
    (
        launch_configs_are_sound,
        "accelerate_configs/a.yaml",
        "# accelerate launch --config_file accelerate_configs/a.yaml runner/train.py\n"
        "distributed_type: MULTI_CPU\nnum_processes: 2",
        "one process, silently",
    ),
    (
        imports_are_declared,
        "runner/optim.py",
        "def f():\n    import pandas",
        "imports pandas, which pyproject.toml",
    ),
    (no_paths_of_one_machine, "docs/index.md", "cd /" + "work/main", "docs/index.md:1 names a path"),
    (no_merge_is_left_half_done, "docs/index.md", "one\n" + "=" * 7 + "\nother", "docs/index.md:2 marks a conflict"),
    (no_merge_is_left_half_done, "recipes/mine/a.py", "<" * 7 + " HEAD", "marks a conflict"),
    (ci_installs_what_is_pinned, "constraints.txt", "numpy==2.0", "numpy is in pyproject.toml and not in .ci"),
]


@pytest.mark.parametrize(("rule", "file", "text", "said"), VIOLATIONS)
def test_a_broken_rule_is_found(
    rule: Callable[[Path], list[str]], file: str, text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "runner").mkdir()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "mine" / "b.py").write_text("def g():\n    from . import a\n")
    assert rule(tmp_path) == [], "a tree with nothing wrong in it"
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text + "\n", encoding="utf-8")
    assert [sentence for sentence in rule(tmp_path) if said in sentence], rule(tmp_path)


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    allowed = {
        "runner/recipe.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
        "runner/config.py": "def parse():\n    import tyro, yaml\n    from runner import registry\n",
        "runner/loop.py": "import torch\nfrom runner import lanes\n",
        "runner/hardware.py": "from accelerate import Accelerator\n",
        "runner/registry.py": "def names():\n    import recipes\n",
        "recipes/mine/recipe.py": "from runner.recipe import Batch\nfrom runner.errors import DataError\n"
        "from recipes.mine import presets\nfrom .data import read\ndef model():\n    import torch\n",
    }
    for file, text in allowed.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    imports_rules = RULES[: RULES.index(names_say_something)]
    assert [sentence for rule in imports_rules for sentence in rule(tmp_path)] == []


def test_the_design_names_files_that_exist() -> None:
    text = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:runner|recipes|tests|docs)/[\w./-]+\.(?:py|md))`", text))
    # The map names files below the folder that stands before them.
    folder = ""
    for line in text.partition("## The map of the house")[2].partition("```\n")[0].splitlines():
        start = re.match(r"(runner|tests)/$|  (checkpoints|parts)/", line)
        folder = f"{folder.partition('/')[0]}/{start[2]}" if start and start[2] else start[1] if start else folder
        if folder.startswith("runner") and not line.startswith("recipes"):
            named |= {f"{folder}/{name}" for name in re.findall(r"(?<![\w/])\w+\.py", line) if name != "download.py"}
        if line.startswith("recipes"):
            break
    assert len(named) > 40
    missing = sorted(name for name in named if "NAME" not in name and not (REPOSITORY / name).is_file())
    assert not missing, missing
    # And every file of the runner has its place on the map.
    mapped = {Path(name).name for name in named}
    files = [path for path in python_files(REPOSITORY, "runner") if path.parent.name != "commands"]
    lost = [path.name for path in files if path.name not in mapped and not path.name.startswith("__")]
    assert not lost, lost


def test_files_of_the_user_in_a_checkout_are_no_strays(tmp_path: Path) -> None:
    for folder in ("runner", "my_data", "scripts"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("")
    for words in (["init", "-q"], ["add", "runner", "scripts"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert nothing_else_at_the_top(tmp_path) == ["scripts stands at the top level, which is fixed"]
