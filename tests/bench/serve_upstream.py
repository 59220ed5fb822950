"""An OpenAI-compatible upstream whose models answer at once; takes its port."""

from __future__ import annotations

import sys

import uvicorn

from tests.service.fake_upstream import FakeUpstream


class Forgetful(FakeUpstream):
    """Does not keep what it received, so that it can be asked for long."""

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await super().__call__(scope, receive, send)
        self.received.clear()


if __name__ == "__main__":
    uvicorn.run(Forgetful(), host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", access_log=False)
