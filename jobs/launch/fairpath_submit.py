"""What spark-submit runs: ``spark-submit --py-files fairpath-VERSION.zip fairpath_submit.py COMMAND ...``.

Spark puts this script's folder first on ``sys.path``, so it lies alone in its folder: a module beside it
could shadow one of the packages. spark-submit merges the program's stderr into its stdout: with
``--log-level error`` the result, JSON, is all that is printed.
"""

from __future__ import annotations

from jobs.cli import main

if __name__ == "__main__":
    main()
