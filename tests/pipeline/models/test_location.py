from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.models.location import ALLOWED_IMPORTS, ModelLocation, locate
from schemas.errors import MissingError, ModelError


def test_a_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("m") == ModelLocation("folder", str(tmp_path / "m"))


def test_the_output_of_a_training_says_where_its_model_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    with pytest.raises(MissingError, match=f"its model is {tmp_path}/model"):
        locate(f"{tmp_path}/")


def test_a_gguf_file_is_a_folder_and_a_name(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    assert locate(str(tmp_path / "m.gguf")) == ModelLocation("gguf", str(tmp_path), "m.gguf")


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-70m", "google/gemma-2-2b"])
def test_what_is_not_here_and_looks_like_a_hub_name_is_one(name: str) -> None:
    assert locate(name) == ModelLocation("hub", name)


def test_a_missing_path_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "smollm").mkdir()
    with pytest.raises(MissingError, match="did you mean 'smollm'"):
        locate(f"{tmp_path}/smolm")
    with pytest.raises(MissingError, match="its folder is not there either"):
        locate(f"{tmp_path}/no/such/folder")


def test_a_missing_gguf_file_is_no_hub_name() -> None:
    with pytest.raises(MissingError, match="not there"):
        locate("models/smollm.gguf")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match=r"is not a GGUF file: it begins with b'PK"):
        locate(str(tmp_path / "m.gguf"))


def test_a_url_is_refused() -> None:
    with pytest.raises(ModelError, match="local folder"):
        locate("s3://bucket/model")


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "bomb_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "inner" / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = ModelLocation("gguf", str(package / "inner"), "m.gguf")
    assert locate("package:bomb_package/inner/m.gguf") == expected
    assert locate("package:bomb_package.inner/m.gguf") == expected
    assert "bomb_package" not in sys.modules


def test_a_missing_package_or_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingError, match="no installed package 'no_such_package'"):
        locate("package:no_such_package/m.gguf")
    with pytest.raises(MissingError, match=r"package:some_package/m\.gguf"):
        locate("package:some_package/m.gguf")
    for beyond in ("", "/", "//etc/m.gguf", "/../m.gguf", "/a/../../m.gguf", "/a//m.gguf"):
        with pytest.raises(ModelError, match="package:PACKAGE/FILE"):
            locate(f"package:some_package{beyond}")


@pytest.mark.parametrize(("listed", "allowed"), [
    ("pkg", True), ("pkg.sub", True), ("other, pkg.sub.build", True),
    ("pk", False), ("pkg.su", False), ("", False), (" , ", False), ("pkg.sub.build.x", False),
])  # fmt: skip
def test_imports_are_allowed_by_whole_dotted_names(listed: str, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED_IMPORTS, listed)
    if allowed:
        assert locate("python:pkg.sub.build") == ModelLocation("python", "pkg.sub.build")
    else:
        with pytest.raises(ModelError, match=ALLOWED_IMPORTS):
            locate("python:pkg.sub.build")


@pytest.mark.parametrize("path", ["python:", "python:build", "python:pkg..build", "python:pkg.os;x"])
def test_an_import_path_needs_module_and_attribute(path: str) -> None:
    with pytest.raises(ModelError, match=r"python:module\.attribute"):
        locate(path)
