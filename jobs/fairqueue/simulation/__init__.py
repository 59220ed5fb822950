"""The fair queue on a simulated cluster, beside other policies and against an ideal.

:mod:`workload` jobs of users, :mod:`cluster` slots in discrete events, :mod:`policies` who gets the next
slot, :mod:`fluid` the ideal schedule, :mod:`metrics` what a schedule is worth, :mod:`scenarios` and
:mod:`trace` workloads, :mod:`experiments` and :mod:`study` the evaluation.
"""
