"""What is installed: one set of versions in three files, a wheel with the preset in it, and no trace of a machine."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.any_backend

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED_BY_MAKE = ("jax", "tensorflow", "torch", "dev")
KNOWN_GOOD = {
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "keras": "3.15.1",
    "keras-hub": "0.32.0",
    "keras-nlp": "0.32.0",
    "tensorflow": "2.21.0",
    "torch": "2.13.0",
}
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
# Written so that this file does not hold what it looks for.
TRACES = {
    "a path of a machine": r"(?<![\w.~])/(?:root|work)(?![\w.-])",
    "the host of a package registry": r"pypi[.]org|pythonhosted[.]org|registry[.]npmjs|download[.]pytorch",
    "an index of packages": r"(?:extra|index|find)-(?:index-)?(?:url|links)\b",
}


def requirements():
    """All that pyproject.toml names, as canonical name -> specifiers; it names nothing twice with different ones."""
    found = {}
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name != "keras-bond":
            assert found.setdefault(name, requirement.specifier) == requirement.specifier
    return found


def pins():
    """constraints.txt as canonical name -> version; every line is an exact one."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), f"not `name==version`: {line}"
            name, version = line.split("==")
            assert name == canonicalize_name(name)
            assert name not in found, f"{name} is pinned twice"
            found[name] = version
    return found


def environment():
    """(conda requirements, pip requirements) of environment.yml, as canonical name -> specifiers; the editable line."""
    loaded = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    lines = loaded["dependencies"]
    pip_lines = next(line["pip"] for line in lines if isinstance(line, dict))
    conda = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in lines if isinstance(line, str))
    python = conda.pop("python")
    conda = {CONDA_NAMES.get(name, name): SpecifierSet(specifiers) for name, specifiers in conda.items()}
    pip = [Requirement(line) for line in pip_lines if not line.startswith("-e ")]
    editable = [line.removeprefix("-e ") for line in pip_lines if line.startswith("-e ")]
    return loaded, python, conda, {canonicalize_name(r.name): r.specifier for r in pip}, editable


def test_the_conda_environment_has_the_versions_of_pyproject():
    _, python, conda, pip, _ = environment()
    named = requirements()
    assert conda.pop("pip") == SpecifierSet()
    for name, specifiers in {**conda, **pip}.items():
        assert name in named, f"{name} is not in pyproject.toml"
        assert specifiers == named[name], f"{name}: environment.yml says {specifiers}, pyproject.toml {named[name]}"
    assert {"pandas", "jupyterlab", "papermill"} <= set(conda)
    assert {"keras", "keras-nlp", "keras-hub", "jax", "tensorflow"} <= set(pip)
    assert python.removeprefix("=") in SpecifierSet(PROJECT["requires-python"])


def test_the_conda_environment_installs_the_package_itself():
    loaded, _, _, _, editable = environment()
    assert (loaded["name"], loaded["channels"]) == ("keras_bond", ["conda-forge"])
    ((extras,),) = [re.findall(r"^\.\[(.*)\]$", line) for line in editable]
    assert set(extras.split(",")) <= set(EXTRAS)


def test_every_pin_satisfies_pyproject():
    pinned = pins()
    for name, specifiers in requirements().items():
        if name in pinned:
            assert pinned[name] in specifiers, f"{name}=={pinned[name]} does not satisfy {specifiers}"


def test_the_pins_are_the_versions_known_to_work_together():
    assert KNOWN_GOOD.items() <= pins().items()


def test_everything_that_make_installs_is_pinned():
    """Follows what is required, as far as it is installed here; another platform may need more."""
    pinned, seen = pins(), set()
    queue = [Requirement(line) for line in PROJECT["dependencies"]]
    queue += [Requirement(f"keras-bond[{extra}]") for extra in INSTALLED_BY_MAKE]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            if name == "keras-bond":
                queue += [Requirement(line) for line in EXTRAS.get(extra, [])]
                continue
            assert name in pinned, f"{name} is not in constraints.txt"
            try:
                lines = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            further = [Requirement(line) for line in lines]
            queue += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert len(seen) > len(requirements())


def test_the_wheel_holds_the_preset_and_the_templates(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    presets = tmp_path / "keras_bond" / "presets"
    files = [
        "config.json",
        "model.weights.h5",
        "build.log",
        "README.md",
        "prompts_test.txt",
        "assets/tokenizer/vocabulary.spm",
    ]
    templates = ["experiments/report.html.j2", "data/templates/gemma.jinja"]
    code = (
        "../__init__.py",
        "__init__.py",
        "build/__init__.py",
        "../experiments/__init__.py",
        "../data/__init__.py",
        *(f"../{name}" for name in templates),
    )
    for name in (*code, *(f"tiny_gemma/{file}" for file in files)):
        (presets / name).parent.mkdir(parents=True, exist_ok=True)
        (presets / name).write_text("")
    build = "import setuptools.build_meta as b; b.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"keras_bond/presets/tiny_gemma/{file}" for file in files} <= names
    assert {"keras_bond/presets/build/__init__.py", *(f"keras_bond/{name}" for name in templates)} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def repository_files(*options):
    """Paths that git lists, relative to the root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", *options]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]


def traces(text):
    return [f"{what}: {match[0]}" for what, pattern in TRACES.items() for match in re.finditer(pattern, text)]


def test_no_file_names_a_machine_or_a_registry():
    found = []
    for name in repository_files("--cached"):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):  # binary, or deleted but not yet committed
            continue
        found += [f"{name} names {trace}" for trace in traces(text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["root", "work"])
def test_a_path_of_a_machine_is_found(folder):
    path = "/" + folder
    for text in (path, f"in {path}/main/x.py", f"'{path}'", f"file://{path}/x", f"PATH={path}:x"):
        assert len(traces(text)) == 1, text
    for text in (f"net{path}", f"a{path}/b", f".{path}", f"{path}er", f"~{path}"):
        assert not traces(text), text


def test_git_ignores_no_source_of_the_package():
    ignored = repository_files("--others", "--ignored", "--exclude-standard", "--", "keras_bond")
    assert [name for name in ignored if "__pycache__" not in name] == []
