"""The shared application: Spark Connect inside a Python driver, fair queueing, and a status page.

:mod:`~jobs.fairqueue.server.serve` is the job behind ``fairpath spark-server``;
:mod:`~jobs.fairqueue.server.connect` starts and stops Spark Connect in the driver;
:mod:`~jobs.fairqueue.server.app` answers HTTP requests for the status page, the same as JSON, and metrics.

What the token is worth
-----------------------
Spark Connect knows one shared token. It decides who may connect, not who is who: a client names its own user
id (``;user_id=`` of its URL, else its operating-system user), and whoever holds the token may name another's.
Every client's code runs as the operating-system user of this application, too. Weights and shares are
therefore an agreement among people who trust each other; where they do not, a gateway in front has to
authenticate each client and write the user id into its requests.
"""

from __future__ import annotations
