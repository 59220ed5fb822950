"""A disk that is full while the stores are copied."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from router.errors import ResourceError
from router.publishing import publish


def test_a_copy_that_finds_no_space(tmp_path, release_parts, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", no_link)
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(ResourceError, match=rf"^{tmp_path}/[^/]+: no space left on the disk") as error:
            publish(tmp_path, model=release_parts["m0"])
    assert len(str(error.value)) < 300
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    assert publish(tmp_path, model=release_parts["m0"]).path.is_dir()
