"""The benchmark: jaxqr beside its peers, on your machine, in one process.

``python -m bench`` in the root of the repository runs every suite; ``python -m bench --help`` says
what else there is. Four notions carry it:

* a :class:`~bench.case.Case` is one row of a table: a matrix and what is done with it;
* a :class:`~bench.contestants.Contestant` does that work, each in its own way;
* a suite (:mod:`bench.suites`) is a list of cases, the contestants, and what is measured of them:
  time, or the cost of compiling, or memory;
* a report (:mod:`bench.report`, :mod:`bench.plots`) is drawn from the suites' JSON files alone.
"""
