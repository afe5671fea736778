"""What a release is: a wheel and an sdist, small, with the package in it and nothing else."""

import ast
import re
import runpy
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parent.parent
OF_WHEEL = runpy.run_path(str(ROOT / "tests" / "wheel.py"))
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "rnnkit").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    builders = WheelBuilder(str(ROOT)), SdistBuilder(str(ROOT))
    return [Path(next(iter(builder.build(directory=str(folder))))) for builder in builders]


def test_wheel_and_sdist_are_small(built):
    wheel, sdist = (file.stat().st_size for file in built)
    assert wheel < 175_000
    assert sdist < 150_000


def test_the_wheel_is_the_package_its_license_and_its_types(built):
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == PACKAGE
    assert {"rnnkit/style.mplstyle", "rnnkit/py.typed"} <= names
    assert {name.partition(".dist-info/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "licenses/LICENSE",
    }


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        return archive.read(name).decode()


def test_an_index_shows_what_the_readme_says_and_no_link_that_leads_nowhere(built):
    readme = (ROOT / "README.md").read_text()
    _, _, shown = metadata_of(built[0]).partition("\n\n")
    assert "```python" in shown and "](" not in shown
    for paragraph in shown.strip().split("\n\n"):
        assert paragraph in readme


def test_the_wheel_asks_for_torch_and_tqdm_alone(built):
    metadata = metadata_of(built[0])
    required = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert sorted(re.findall(r"Requires-Dist: (\w+)", "\n".join(required))) == ["torch", "tqdm"]


def test_the_sdist_is_what_a_wheel_is_built_of(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    beside = {"CHANGES.md", "CITATION.cff", "LICENSE", "README.md", "PKG-INFO", "pyproject.toml"}
    assert names - {".gitignore"} == PACKAGE | beside


def test_the_release_runs_the_tests_of_the_wheel_with_all_they_need():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    said = " ".join(step.get("run", "") for step in jobs["test"]["steps"])
    assert "python tests/wheel.py" in said
    for name in OF_WHEEL["NEEDS"]:
        package = {
            "sklearn": "scikit-learn",
            "matplotlib": "plot",
            "torchmetrics": "metrics",
            "onnxruntime": "export",
        }.get(name, name)
        assert package in said, package


def test_each_test_that_a_wheel_goes_without_is_there_and_each_other_is_copied(tmp_path):
    every = {file.stem.removeprefix("test_") for file in (ROOT / "tests").glob("test_*.py")}
    assert every >= OF_WHEEL["OF_THE_CHECKOUT"]
    copied = {name.removeprefix("test_") for name in OF_WHEEL["copied"](tmp_path)}
    assert copied == every - OF_WHEEL["OF_THE_CHECKOUT"]
    for file in (tmp_path / "tests").glob("*.py"):
        imported = {
            node.module or ""
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert not imported & {"road", "away", "tests"}, file.name  # of the checkout
