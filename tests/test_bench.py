"""The benchmark's own parts: that it compares fairly, reports what it measured, and runs."""

import contextlib
import dataclasses
import importlib.machinery
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxqr
from bench import __main__ as bench_main
from bench import lowered, thunks, timing
from bench.__main__ import main, run
from bench.case import (
    GRADIENT,
    KALMAN,
    LAYER,
    LQ,
    LSTSQ,
    PIVOTED,
    PULLBACK,
    QR,
    R_ALONE,
    RHS,
    STEP,
    VALUE,
    Case,
    inputs,
    weights,
)
from bench.contestants import (
    JAX,
    JAXQR,
    LINEAX_AUTO,
    LINEAX_QR,
    TENSORFLOW,
    TORCH,
    InJax,
    Unsupported,
    absent,
)
from bench.eq8 import pullback_eq8
from bench.equations import factorization, pullback_eq3
from bench.machine import PINS, machine, pinned
from bench.measure import SECONDS, Row, operations, residual_bytes, seconds
from bench.report import report
from bench.results import Result, load, save
from bench.suites import EFFORTS, SUITES
from bench.timing import Effort, interleave, ratio, spread
from bench.uses import NOISE, log_likelihood
from jaxqr._linalg.crossovers import SUMS_ARE_KEPT

TINY = EFFORTS["tiny"]


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def _normal(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.standard_normal(shape)
    return jnp.asarray(x, dtype)


def _close(x, y):
    x, y = (np.asarray(z.detach() if hasattr(z, "detach") else z) for z in (x, y))
    return np.abs(x - y).max() < 1e-12


# --- Eq. 8


@pytest.mark.parametrize("shape", [(7, 4), (5, 5), (3, 6, 4)])
@pytest.mark.parametrize(
    ("dtype", "corrected", "right"),
    [
        (np.float64, False, True),
        (np.float64, True, True),
        (np.complex128, False, False),
        (np.complex128, True, True),
    ],
)
def test_eq8_is_the_pullback_for_real_input_and_with_its_correction(shape, dtype, corrected, right):
    (q, r), vjp = jax.vjp(jaxqr.qr, _normal(0, shape, dtype))
    q_bar, r_bar = _normal(1, q.shape, dtype), _normal(2, r.shape, dtype)
    expected = jnp.conj(vjp((jnp.conj(q_bar), jnp.conj(r_bar)))[0])
    found = pullback_eq8(q, r, q_bar, r_bar, corrected)
    assert _close(found, expected) == right


@pytest.mark.parametrize("pullback", [pullback_eq3, pullback_eq8])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_both_equations_give_the_gradient_of_wide_qr(pullback, dtype):
    a = _normal(0, (4, 7), dtype)
    cotangents = _normal(1, (4, 4), dtype), _normal(2, (4, 7), dtype)
    found = jax.vjp(factorization(pullback), a)[1](cotangents)[0]
    assert _close(found, jax.vjp(jaxqr.qr, a)[1](cotangents)[0])
    a = a.at[:, 1].set(a[:, 0])  # the leading block is singular
    found = jax.vjp(factorization(pullback, pivoting=True), a)[1](cotangents)[0]
    expected = jax.vjp(lambda a: jaxqr.pivoted_qr(a)[:2], a)[1](cotangents)[0]
    assert _close(found, expected)


# --- Timing


def test_contestants_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    samples = interleave(calls, Effort(total=1.0, sample=0.0, lead=0.0, rounds=(4, 4)))
    assert {name: len(s) for name, s in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert turns[-12:] == list("abc") * 4


class Clock:
    """Time that passes where a test says so, for timing that no machine can disturb."""

    def __init__(self):
        self.now = 0.0
        self.calls = 0

    def perf_counter(self):
        return self.now

    def call(self):
        """What takes a millisecond."""
        self.now += 1e-3
        self.calls += 1


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_short_calls_are_repeated_within_a_sample(clock):
    effort = Effort(total=0.0, sample=0.0205, lead=0.0, rounds=(1, 1))
    (sample,) = interleave({"a": clock.call}, effort)["a"]
    assert clock.calls == 3 + 21  # what finds out how long a call takes, and the sample
    assert sample == pytest.approx(1e-3)  # of one call


def test_calls_that_lead_up_to_a_sample_are_not_timed(clock):
    """The contestant's own caches and threads are in place again by the time it is timed."""
    effort = Effort(total=0.0, sample=0.0, lead=0.0105, rounds=(1, 1))
    (sample,) = interleave({"a": clock.call}, effort)["a"]
    assert clock.calls == 1 + 11 + 1
    assert sample == pytest.approx(1e-3)


def test_rounds_follow_the_time_there_is(clock):
    def rounds(total):
        return len(interleave({"a": clock.call}, Effort(total, 1e-3, 0.0, (2, 50)))["a"])

    assert rounds(0.0) == 2
    assert rounds(0.02) == 10  # of a sample and the call that leads up to it
    assert rounds(1e9) == 50


def test_medians_quartiles_and_paired_ratios():
    found = spread([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    # Paired: the second round was slow for both, and says nothing of the ratio.
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).median == 2.0
    assert ratio([1.0], [0.0]) is None


# --- What is measured


@pytest.mark.parametrize(
    "case",
    [
        *(Case(op, GRADIENT, (6, 4), "float64") for op in (QR, R_ALONE, LQ, PIVOTED, LSTSQ)),
        Case(RHS, GRADIENT, (6, 4), "float64", rhs=3),
        Case(KALMAN, GRADIENT, (2, 3, 3), "float64"),
        Case(LAYER, STEP, (3, 5, 2), "float64"),
    ],
    ids=lambda case: case.op,
)
def test_contestants_do_the_same_work(case):
    """The same loss and the same gradient, from whoever is installed and has the operation."""
    found = {}
    for contestant in (JAXQR, JAX, LINEAX_QR, LINEAX_AUTO, TORCH, TENSORFLOW):
        if not absent(contestant.name):
            with contextlib.suppress(Unsupported):
                found[contestant.name] = jax.tree.leaves(contestant.prepare(case)())
    first = found.pop("JAX")
    assert all(_close(x, y) for other in found.values() for x, y in zip(first, other, strict=True))


def test_pullback_is_timed_alone():
    case = Case(QR, PULLBACK, (6, 4), "float64")
    work, args = JAXQR.program(case)
    (found,) = work(*args)
    (expected,) = jax.vjp(jaxqr.qr, *inputs(case))[1](weights(case))
    assert _close(found, expected)
    assert " qr" not in str(jax.make_jaxpr(work)(*args))


def test_a_contestant_that_fails_is_a_result():
    def refuses(case):
        raise Unsupported("not today")

    def breaks(case):
        raise ValueError("first line\nsecond line")

    case = Case(QR, VALUE, (4, 3), "float32")
    row = seconds(case, [JAXQR, InJax("x", refuses), InJax("y", breaks)], TINY)
    assert list(row.results) == ["jaxqr"]
    assert row.failures == {"x": "not today", "y": "ValueError: first line"}


def test_the_filter_is_kalmans():
    """Its log likelihood is that of the observations' joint distribution, by their covariance."""
    a, y = inputs(Case(KALMAN, VALUE, (3, 3), "float64"))
    y = y[:6]
    transition = a / (2 * np.sqrt(3))
    # State and covariance of all times at once: x_t = F^t x_0 + sum_s F^(t-s) w_s, P_0 = I.
    powers = [np.linalg.matrix_power(transition, t) for t in range(7)]
    sigma = NOISE**2 * np.eye(6)
    for t in range(6):
        for s in range(6):
            sigma[t, s] += (powers[t + 1] @ powers[s + 1].T)[0, 0]
            for j in range(min(s, t) + 1):
                sigma[t, s] += NOISE**2 * (powers[t - j] @ powers[s - j].T)[0, 0]
    expected = -np.linalg.slogdet(sigma)[1] / 2 - y @ np.linalg.solve(sigma, y) / 2
    found = log_likelihood(lambda x: jaxqr.qr(x, mode="r"))(jnp.asarray(a), jnp.asarray(y))
    assert _close(found, expected)


def test_residuals_are_the_factors():
    assert residual_bytes(JAXQR, Case(QR, GRADIENT, (6, 4), "float32")) == 4 * (6 * 4 + 4 * 4)


def test_operations_of_a_square_matrix():
    n = 12
    assert operations(Case(R_ALONE, VALUE, (n, n), "float32")) == pytest.approx(4 / 3 * n**3)
    assert operations(Case(QR, VALUE, (n, n), "float32")) == pytest.approx(8 / 3 * n**3)
    assert operations(Case(QR, VALUE, (5, n, n), "float32")) == pytest.approx(40 / 3 * n**3)


# --- The report


def test_report_says_what_was_measured():
    times = {"jaxqr": {SECONDS: [1e-3, 1e-3]}, "JAX": {SECONDS: [2e-3, 4e-3]}}
    rows = [
        Row(Case(QR, GRADIENT, (10000, 8, 4), "float32"), times),
        Row(Case(QR, GRADIENT, (9, 9), "float32"), times, {"torch": "has a cold"}),
    ]
    machine = {"processor": "abacus"}
    text = report([Result("shapes", "full", 90.0, machine, {}, {"tf": "tensorflow"}, rows)])
    assert "abacus" in text
    assert "tf is left out" in text
    assert "has a cold" in text
    assert "| qr | value and gradient | float32 | all | **3.00** (3.00; 2) | JAX 2" in text
    assert "**3.00** (3.00; 1) | JAX 5 |" in text  # the small batch by itself
    assert "| 10000 of 8 × 4 | float32 | 1.00 | 3.00 | **3.00** (2.50 – 3.50) |" in text


def test_machines_stand_side_by_side():
    def result(processor, *theirs):
        of = {"jaxqr": {SECONDS: [1e-3, 1e-3]}, "JAX": {SECONDS: list(theirs)}}
        rows = [Row(Case(QR, GRADIENT, (9, 9), "float32"), of)]
        return Result("shapes", "full", 90.0, {"processor": processor}, {}, {}, rows)

    here, there = result("abacus", 2e-3, 2e-3), result("slide rule", 3e-3, 3e-3)
    text = report([here], [there])
    assert "| processor | abacus | slide rule |" in text
    assert "| operation | work | matrix | type | JAX / jaxqr, A | JAX / jaxqr, B |" in text
    both = "**2.00** (2.00 – 2.00) | **3.00** (3.00 – 3.00)"
    assert f"| qr | value and gradient | 9 × 9 | float32 | {both} |" in text
    assert "slide rule" not in report([here])


def test_lapack_is_named_where_it_can_be(monkeypatch):
    pool = {"user_api": "blas", "internal_api": "openblas", "version": "0.3"}
    pools = [
        pool | {"filepath": "/x/numpy.libs/libscipy_openblas64_.so", "num_threads": 8},
        pool | {"filepath": "/x/scipy.libs/libscipy_openblas.so", "num_threads": 2}
        | {"architecture": "Zen"},
        {"user_api": "openmp", "filepath": "/x/libgomp.so"},
    ]  # fmt: skip
    tool = types.ModuleType("threadpoolctl")
    tool.__spec__ = importlib.machinery.ModuleSpec("threadpoolctl", None)
    tool.threadpool_info = lambda: pools
    monkeypatch.setitem(sys.modules, "threadpoolctl", tool)
    assert machine()["SciPy's openblas"] == "0.3, kernel Zen, 2 threads"
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert not any("openblas" in key for key in machine())


def test_a_pinned_kernel_is_told(monkeypatch, tmp_path, capsys):
    """What OpenBLAS is kept from choosing makes rivals slow."""
    for name in PINS:
        monkeypatch.delenv(name, raising=False)
    assert pinned() == ""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    assert "OPENBLAS_CORETYPE=Prescott pins OpenBLAS's kernel" in pinned()
    assert "env -u OPENBLAS_CORETYPE python" in pinned()
    assert machine()["OPENBLAS_CORETYPE"] == "Prescott"
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    assert "env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python" in pinned()
    nothing = dataclasses.replace(SUITES[0], cases=lambda size, files: [])
    monkeypatch.setattr(bench_main, "SUITES", [nothing])
    monkeypatch.setattr(bench_main, "_write_up", lambda *_: None)
    assert main(["--tiny", "--out", str(tmp_path)]) == 0
    assert pinned() in capsys.readouterr().err


def test_results_are_saved_without_the_folder_of_the_file(tmp_path):
    case = Case(QR, VALUE, (3, 4), "float64", "/some/where/x.mtx")
    result = Result("pivoted", "tiny", 1.0, {}, {}, {}, [Row(case, {"jaxqr": {SECONDS: [0.5]}})])
    save(result, tmp_path / "r.json")
    assert "some" not in (tmp_path / "r.json").read_text()
    read = load(tmp_path / "r.json")
    assert read.rows[0].case == dataclasses.replace(case, file="x.mtx")
    assert read.rows[0].results == result.rows[0].results


# --- All of it


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_suite_runs(suite, tmp_path):
    """On the last of its own cases for each operation, which has a derivative to take."""
    of_each = {case.op: case for case in suite.cases("tiny", ())}
    few = dataclasses.replace(suite, cases=lambda size, files: list(of_each.values()))
    result = run(few, "tiny")
    assert len(result.rows) == len(of_each)
    for row in result.rows:
        if row.case.op != LSTSQ or hasattr(jaxqr, "lstsq"):
            assert suite.base in row.results, row.failures
    save(result, tmp_path / "result.json")
    assert suite.title in report([load(tmp_path / "result.json")])

    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    from bench.plots import draw

    draw(suite, result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_command_takes_a_file_and_writes_everything(tmp_path, capsys):
    pytest.importorskip("scipy")
    a = _normal(3, (3, 5), np.float64).at[:, 1].set(0)
    entries = "\n".join(str(float(x)) for x in a.T.ravel())
    matrix = tmp_path / "wm1.mtx"
    matrix.write_text(f"%%MatrixMarket matrix array real general\n3 5\n{entries}\n")
    out = tmp_path / "out"
    assert main(["equations", "--tiny", "--matrix", str(matrix), "--out", str(out)]) == 0
    text = (out / "README.md").read_text()
    assert "| wm1 (3 × 5) | pullback | 4.55 | 11.67 | 2.56 |" in text
    assert str(tmp_path) not in text
    assert "pivoted_qr, wm1" in capsys.readouterr().err


def test_command_refuses_in_one_line(tmp_path, capsys):
    missing, out = str(tmp_path / "missing.mtx"), tmp_path / "out"
    assert main(["pivoted", "--tiny", "--matrix", missing, "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"{missing}:1: expected a readable file")
    assert main(["--report", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"{out}: there are no results\n"
    assert not out.exists()
    assert main(["pivoted", "--tiny", "--beside", str(out), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"{out}: there are no results\n"
    out.touch()
    assert main(["pivoted", "--tiny", "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"{out}: File exists\n"


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"rows": [{}]}', '{"rows": []}'])
def test_command_names_what_is_no_result(text, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "rhs.json"
    broken.write_text(text)
    monkeypatch.setattr(bench_main, "run", lambda *_: pytest.fail("measured"))
    for args in (["--report"], ["--report", "--beside", str(tmp_path)], ["pivoted", "--tiny"]):
        assert main([*args, "--out", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"{broken}: this is no suite's result: ")
        assert err.count("\n") == 1


def test_what_is_asked_of_a_gpu_is_counted(capsys):
    assert lowered.main(["100x8x4", "--dtype", "complex64"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    (_, *jaxs), (_, *ours), (_, *by_crossovers) = rows
    assert jaxs[:3] == ["JAX", "3", "3"]  # geqrf, orgqr, a solve
    assert ours[:3] == ["jaxqr", "3", "4"]
    # Complex elimination is a loop where XLA takes sums anew: here, and where it is applied.
    assert by_crossovers[1:4] == ["0", "0", "0" if SUMS_ARE_KEPT else "4"]
    assert float(by_crossovers[4]) > 500
    assert float(by_crossovers[5]) == 0


def test_bytes_of_calls_and_products():
    product = InJax("a product", lambda _: lambda a: (a @ a.mT,))
    found = lowered.counted(Case(QR, VALUE, (5, 3, 4), "complex64"), product)
    assert found[lowered.MEGABYTES] == pytest.approx(8 * 5 * (2 * 3 * 4 + 3 * 3) / 1e6)


@pytest.mark.filterwarnings("ignore:builtin type event_stats")  # of the profiler's reader
def test_thunks_are_told_apart(capsys):
    for options in ["--dtype", "float64"], ["--lstsq", "--value"]:
        assert thunks.main(["200x100", *options]) == 0
        *_, row = capsys.readouterr().out.strip().splitlines()
        name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        assert name == "200 × 100"
        jaxqrs, jaxs = ([float(cell) for cell in part] for part in (cells[:3], cells[3:]))
        assert min(jaxqrs) > 0
        assert len(jaxs) == 3
        assert min(jaxs) > 0 or "--value" in options  # which needs no product
