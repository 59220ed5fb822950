"""The fair queue inside an unmodified Spark; its public face is :mod:`jobs.fairqueue`."""
