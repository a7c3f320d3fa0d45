"""The command line: what it says of real matrices, of broken files and of wrong gradients."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from jax import lax
from jax.lax import stop_gradient

import jaxqr
from jaxqr import cli
from jaxqr.cli import main, measuring
from jaxqr.cli import progress as cli_progress
from jaxqr.cli.differences import differentiate
from jaxqr.cli.longley import CERTIFIED, DESIGN, RESPONSE

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(measuring, "_TIMING_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def matrix(tmp_path):
    def write(name, a):
        path = tmp_path / f"{name}.mtx"
        scipy.io.mmwrite(path, np.asarray(a), precision=17)
        return str(path)

    return write


@pytest.fixture
def run(capsys):
    """Run the program with --json; return exit status, the object and stderr."""

    def run(*arguments):
        status = main(["--json", *arguments])
        out, err = capsys.readouterr()
        return status, json.loads(out, parse_constant=pytest.fail), err

    return run


def _random(m, n, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((m, n)) + 1j * rng.standard_normal((m, n))).astype(dtype)


def _real(m, n, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n))


def _by_name(matrix):
    return {f["name"]: f for f in matrix["factorizations"]}


# Most of the time goes into compiling: the same few shapes serve again and again.


# What it prints.


def test_longley_is_the_table_without_a_file(capsys, monkeypatch):
    monkeypatch.setattr(cli_progress, "PATIENCE", 1e6)  # a busy machine takes longer
    assert main([]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "Longley: 16 x 7, float64, norm 1.7e+06, condition 4.9e+09"
    assert lines[1] == "  rank 7 of 7; leading 7 columns: 7, leading 7 rows: 7"
    assert lines[2] == "  derivative: qr, lq, pivoted_qr"
    assert [line.split()[:2] for line in lines[5:11:2]] == [
        ["qr", "jaxqr"],
        ["lq", "jaxqr"],
        ["pivoted_qr", "jaxqr"],
    ]
    assert all(line.split()[-6] == "right" for line in lines[5:11])
    assert {len(line) for line in lines[4:11]} == {80}
    assert max(map(len, lines)) <= 80
    assert out.isascii()
    assert err == ""


def test_the_table_fits_sixty_columns(capsys, monkeypatch):
    assert main([]) == 0
    wide = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(os, "getloadavg", lambda: (1e3, 1e3, 1e3), raising=False)
    assert main([]) == 0
    narrow = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 60
    words = set(wide.partition("load")[0].split())
    assert {word for word in words if word[0].isalpha()} <= {"ms", "us", "s", *narrow.split()}
    rows = [line.split() for line in narrow.splitlines() if line.startswith("  qr ")]
    assert [len(row) for row in rows] == [6, 6]
    assert rows[0][4] == "right"
    assert rows[1][3] in ("s", "ms", "us")


def test_json_has_the_documented_keys_and_no_others(run, capsys):
    status, printed, err = run()
    assert (status, err) == (0, "")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    described = capsys.readouterr().out.partition("--json prints")[2]
    words = {word.strip(",:") for word in described.split()}
    assert _keys(printed) <= words
    assert _keys(printed) == {
        *("jaxqr", "jax", "platform", "matrices", "errors", "name", "shape", "dtype", "norm"),
        *("rank", "condition", "leading_columns_rank", "leading_rows_rank", "factorizations"),
        *("needed", "differentiable", "gradient_tolerance", "residual", "orthogonality"),
        *("gradient", "gradient_error", "value_seconds", "gradient_seconds"),
    }


def _keys(value):
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = set(value) if isinstance(value, dict) else set()
    return own.union(*map(_keys, items))


def test_json_of_longley(run):
    _, printed, _ = run()
    (longley,) = printed["matrices"]
    assert longley["shape"] == [16, 7]
    assert longley["condition"] == pytest.approx(4.859257e9)
    for factorization in longley["factorizations"]:
        for who in ("jaxqr", "jax"):
            done = factorization[who]
            assert done["residual"] < 1e-14
            assert done["orthogonality"] < 1e-13
            assert done["gradient"] == "right"
            assert 0 < done["value_seconds"] < 10
            assert 0 < done["gradient_seconds"] < 10
    # lq is as ill-conditioned as the rows, which no scaling helps.
    assert _by_name(longley)["qr"]["jaxqr"]["gradient_error"] < 1e-8
    assert _by_name(longley)["pivoted_qr"]["jaxqr"]["gradient_error"] < 1e-8


def test_wm1_has_a_gradient_with_pivoting_only(run):
    path = SHARED / "wm1.mtx"
    if not path.exists():
        pytest.skip("wm1.mtx is not here")
    status, printed, _ = run(str(path))
    (wm1,) = printed["matrices"]
    assert status == 0
    assert wm1["shape"] == [207, 277]
    assert (wm1["rank"], wm1["leading_columns_rank"], wm1["leading_rows_rank"]) == (207, 176, 207)
    qr, lq, pivoted = (_by_name(wm1)[name] for name in ("qr", "lq", "pivoted_qr"))
    assert (qr["differentiable"], qr["rank"], qr["needed"]) == (False, 176, 207)
    assert qr["jaxqr"]["gradient"] == "not finite"
    assert qr["jax"]["gradient"] == "not finite"
    for factorization in (lq, pivoted):
        assert factorization["differentiable"]
        assert factorization["jaxqr"]["gradient"] == "right"
        assert factorization["jaxqr"]["gradient_error"] < 1e-8


@pytest.mark.parametrize(
    ("m", "n", "dtype"),
    [
        (6, 3, "float32"),
        (3, 6, "float64"),
        (4, 4, "complex64"),
        (6, 3, "complex128"),
        (3, 6, "complex128"),
    ],
)
def test_right_gradients_are_called_right(run, matrix, m, n, dtype):
    status, printed, _ = run("--dtype", dtype, matrix("a", _real(m, n)))
    assert status == 0
    (measured,) = printed["matrices"]
    assert measured["dtype"] == dtype
    eps = np.finfo(dtype).eps
    for factorization in measured["factorizations"]:
        done = factorization["jaxqr"]
        assert done["residual"] < 10 * eps
        assert done["orthogonality"] < 30 * eps
        assert done["gradient"] == "right"
        assert done["gradient_error"] < (1e-9 if eps < 1e-10 else 1e-3)


def test_complex_files_are_computed_in_complex128(run, matrix):
    a = _real(6, 3) + 1j * _real(6, 3, seed=1)
    _, printed, _ = run(matrix("a", a))
    (measured,) = printed["matrices"]
    assert measured["dtype"] == "complex128"
    assert {f["jaxqr"]["gradient"] for f in measured["factorizations"]} == {"right"}


def test_derivatives_follow_the_leading_columns_and_rows(run, matrix):
    deep, wide = _real(6, 3), _real(3, 6, seed=1)
    deep[1] = 2 * deep[0]
    wide[:, 1] = 2 * wide[:, 0]
    _, printed, _ = run(matrix("deep", deep), matrix("wide", wide))
    for measured, ranks in zip(printed["matrices"], [(3, 3, 2), (3, 2, 3)], strict=True):
        rank, columns, rows = ranks
        found = _by_name(measured)
        assert (measured["rank"], measured["leading_columns_rank"]) == (rank, columns)
        assert measured["leading_rows_rank"] == rows
        assert found["qr"]["differentiable"] == (columns == 3)
        assert found["lq"]["differentiable"] == (rows == 3)
        assert found["pivoted_qr"]["jaxqr"]["gradient"] == "right"


def test_ranks_are_those_of_the_type(run):
    _, printed, _ = run("--dtype", "float32")
    (longley,) = printed["matrices"]
    assert longley["rank"] == np.linalg.matrix_rank(DESIGN.astype("float32")) == 6
    assert longley["factorizations"][-1]["name"] == "pivoted_qr rank=6"
    assert longley["factorizations"][-1]["jaxqr"]["gradient"] == "right"


def test_rank_deficient_matrix_has_a_derivative_cut_at_its_rank(run, matrix, capsys):
    path = matrix("a", _real(6, 2) @ _real(2, 3, seed=1))
    status, printed, _ = run(path)
    assert status == 0
    (measured,) = printed["matrices"]
    assert (measured["rank"], measured["condition"]) == (2, None)
    cut = measured["factorizations"][-1]
    assert [f["differentiable"] for f in measured["factorizations"]] == [False, False, False, True]
    assert (cut["name"], cut["jax"]) == ("pivoted_qr rank=2", None)
    assert cut["jaxqr"]["residual"] < 1e-14
    assert cut["jaxqr"]["gradient"] == "right"
    main([path])
    lines = capsys.readouterr().out.splitlines()
    assert "  derivative: pivoted_qr rank=2" in lines
    assert "  none for:   qr (rank 2 < 3), lq (rank 2 < 3), pivoted_qr (rank 2 < 3)" in lines
    assert any(line.split()[:3] == ["rank=2", "JAX", "-"] for line in lines)


@pytest.mark.parametrize(
    "a",
    [
        np.zeros((0, 3)),
        np.zeros((2, 0)),
        np.zeros((6, 3)),
        np.full((1, 1), 3.0),
        1e200 * _real(6, 3),
    ],
)
def test_small_and_extreme_matrices(tmp_path, run, a):
    path = tmp_path / "a.mtx"
    numbers = "\n".join(map(str, a.T.ravel()))
    path.write_text(
        f"%%MatrixMarket matrix array real general\n{a.shape[0]} {a.shape[1]}\n{numbers}"
    )
    status, printed, _ = run(str(path))
    assert status == 0
    expected = "right" if a.any() else "finite" if a.size == 0 else "not finite"
    for factorization in printed["matrices"][0]["factorizations"]:
        assert factorization["jaxqr"]["gradient"] == expected
        assert factorization["jaxqr"]["residual"] < 1e-15


@pytest.mark.parametrize(("dtype", "size"), [("float64", 1e307), ("float32", 1e37)])
def test_right_gradients_near_the_largest_number(run, matrix, dtype, size):
    status, printed, _ = run("--dtype", dtype, matrix("a", size * _real(6, 3)))
    assert status == 0
    assert all(f["jaxqr"]["gradient"] == "right" for f in printed["matrices"][0]["factorizations"])


SIZES = [(t, s) for t in ("float64", "complex128") for s in (1e300, 1e-300)]
SIZES += [("float64", 1.2e308), ("float32", 1e30), ("float32", 1e-30)]


@pytest.mark.parametrize(("dtype", "size"), SIZES)
def test_norms_and_residuals_at_extreme_sizes(run, matrix, capsys, dtype, size):
    unit = _random(6, 3, "complex128") if dtype == "complex128" else _real(6, 3)
    u, _, vh = np.linalg.svd(unit, full_matrices=False)
    unit = u * [1, 0.9, 0.8] @ vh  # of 2-norm one: no entry of a factor is larger
    path = matrix("a", size * unit)
    _, printed, _ = run("--dtype", dtype, path)
    (measured,) = printed["matrices"]
    expected = Decimal(size) * Decimal(float(np.linalg.norm(unit)))
    beyond = size > 1e300  # LAPACK adds two such numbers: only the norm is to be had
    if beyond:
        assert measured["norm"] is None
    else:
        assert measured["norm"] == pytest.approx(float(expected), rel=1e-6)
    eps = np.finfo(dtype).eps
    assert (measured["rank"], measured["leading_rows_rank"]) == (3, 3)
    assert measured["condition"] == pytest.approx(1.25, rel=1e-5)
    for factorization in measured["factorizations"] if not beyond else []:
        assert 0 < factorization["jaxqr"]["residual"] < 10 * eps
        assert 0 < factorization["jaxqr"]["orthogonality"] < 30 * eps
    main(["--dtype", dtype, path])
    assert f", norm {expected:.1e}, condition" in capsys.readouterr().out


# A check that passes a wrong gradient is none. Faults keep the values and spoil the gradient.


def _spoiled(x, where):
    """x, with a gradient that is a tenth too large there."""
    return jnp.where(where, 1.1 * x - 0.1 * stop_gradient(x), x)


FAULTS = {
    "all of Q": lambda q, r: (_spoiled(q, True), r),
    "one column of Q": lambda q, r: (_spoiled(q, _column(q, 0)), r),
    "all of R": lambda q, r: (q, _spoiled(r, True)),
    "first row of R": lambda q, r: (q, _spoiled(r, jnp.arange(r.shape[0])[:, None] == 0)),
    "last column of R": lambda q, r: (
        q,
        _spoiled(r, _column(r, -1)),
    ),
    "imaginary part of R": lambda q, r: (q, lax.complex(r.real, stop_gradient(r.imag))),
    "no gradient at all": lambda q, r: (stop_gradient(q), stop_gradient(r)),
}


def _column(r, j):
    return jnp.arange(r.shape[1])[None] == j % r.shape[1]


def _faulty(fault):
    return lambda a: FAULTS[fault](*jnp.linalg.qr(a))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_wrong_gradients_are_called_wrong(run, matrix, monkeypatch, fault, shape):
    monkeypatch.setattr(measuring, "_cases", _only_qr)
    monkeypatch.setattr(measuring, "qr", _faulty(fault))
    _, printed, _ = run(matrix("a", _random(*shape, dtype="complex128")))
    (qr,) = printed["matrices"][0]["factorizations"]
    assert qr["jaxqr"]["gradient"] == "wrong"
    assert qr["jaxqr"]["gradient_error"] > 1e-3
    assert qr["jax"]["gradient"] == "right"


@jax.custom_vjp
def _conjugating(a):
    return a


_conjugating.defvjp(lambda a: (a, None), lambda _, gradient: (gradient.conj(),))


def test_conjugated_gradients_are_called_wrong(run, matrix, monkeypatch):
    """The trap of complex rules: a gradient that is right along every real direction."""
    monkeypatch.setattr(measuring, "_cases", _only_qr)
    monkeypatch.setattr(measuring, "qr", lambda a: jnp.linalg.qr(_conjugating(a)))
    _, printed, _ = run(matrix("a", _random(5, 3, dtype="complex128")))
    (qr,) = printed["matrices"][0]["factorizations"]
    assert qr["jaxqr"]["gradient"] == "wrong"


@jax.custom_vjp
def _turned_beside_a_gradient(a):
    return jnp.linalg.qr(a)


def _turned(a):
    q, r = jnp.linalg.qr(a)
    return -q, -r


_turned_beside_a_gradient.defvjp(lambda a: jax.vjp(_turned, a), lambda pull, g: pull(g))


def test_signs_are_those_of_the_factors_beside_the_gradient(run, matrix, monkeypatch):
    """Where a pivot is zero to rounding, another algorithm may give its column another sign."""
    monkeypatch.setattr(measuring, "_cases", _only_qr)
    monkeypatch.setattr(measuring, "qr", _turned_beside_a_gradient)
    status, printed, _ = run(matrix("a", _real(6, 3)))
    (qr,) = printed["matrices"][0]["factorizations"]
    assert (status, qr["jaxqr"]["gradient"]) == (0, "right")


@pytest.mark.parametrize("fault", ["all of Q", "all of R"])
def test_ill_conditioning_hides_no_fault(run, monkeypatch, fault):
    monkeypatch.setattr(measuring, "_cases", _only_qr)
    monkeypatch.setattr(measuring, "qr", _faulty(fault))
    _, printed, _ = run()
    (qr,) = printed["matrices"][0]["factorizations"]
    assert qr["jaxqr"]["gradient"] == "wrong"


def _only_qr(k, rank, columns, rows):
    return [measuring._Case("qr", columns, k, False, measuring.qr, jnp.linalg.qr)]


def test_nothing_is_claimed_where_rounding_hides_it(run, matrix):
    a = _real(6, 3)
    a[:, 2] = a[:, 1] + 1e-5 * a[:, 2]
    _, printed, _ = run("--dtype", "float32", matrix("a", a))
    qr = _by_name(printed["matrices"][0])["qr"]
    assert qr["differentiable"]
    assert qr["gradient_tolerance"] > 0.1
    assert qr["jaxqr"]["gradient"] == "finite"


def test_what_jax_cannot_do_does_not_stop_us(run, matrix, monkeypatch, capsys):
    def unavailable(a):
        raise NotImplementedError("no such algorithm here")

    monkeypatch.setattr(measuring, "_jax_pivoted_qr", unavailable)
    path = matrix("a", _real(6, 3))
    status, printed, err = run(path)
    assert (status, err) == (0, "")
    pivoted = _by_name(printed["matrices"][0])["pivoted_qr"]
    assert pivoted["jax"] is None
    assert pivoted["jaxqr"]["gradient"] == "right"
    main([path])
    assert ["JAX", *"------"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_numbers_that_json_cannot_say_are_null(run, matrix, monkeypatch):
    monkeypatch.setattr(measuring, "_cases", _only_qr)
    monkeypatch.setattr(measuring, "qr", lambda a: [jnp.nan * x for x in jnp.linalg.qr(a)])
    _, printed, _ = run(matrix("a", _real(6, 3)))
    (qr,) = printed["matrices"][0]["factorizations"]
    assert qr["jaxqr"]["residual"] is None
    assert qr["jaxqr"]["gradient"] == "not finite"


# The exit status.


def test_a_wrong_gradient_is_the_exit_status(run, matrix, monkeypatch):
    monkeypatch.setattr(measuring, "_cases", _only_qr)
    monkeypatch.setattr(measuring, "qr", _faulty("all of Q"))
    wrong = matrix("a", _real(6, 3))
    status, printed, _ = run(wrong)
    assert printed["matrices"][0]["factorizations"][0]["jaxqr"]["gradient"] == "wrong"
    assert status == 1
    assert run(wrong, "missing.mtx")[0] == 2
    monkeypatch.setattr(measuring, "qr", jnp.linalg.qr)
    assert run(wrong)[0] == 0


def test_a_wrong_gradient_of_jax_is_not_ours(run, matrix, monkeypatch):
    case = measuring._Case("qr", 3, 3, False, jnp.linalg.qr, _faulty("all of Q"))
    monkeypatch.setattr(measuring, "_cases", lambda *_: [case])
    status, printed, _ = run(matrix("a", _real(6, 3)))
    assert printed["matrices"][0]["factorizations"][0]["jax"]["gradient"] == "wrong"
    assert status == 0


# Files that cannot be read.


def test_bad_files_are_told_and_the_others_done(tmp_path, matrix, capsys, run):
    empty, cut = tmp_path / "empty.mtx", tmp_path / "cut.mtx"
    empty.touch()
    cut.write_text("%%MatrixMarket matrix array real general\n2 2\n1\n2\n3\n")
    good, also_good = matrix("good", _real(6, 3)), matrix("also_good", _real(6, 3, seed=1))
    missing = tmp_path / "missing.mtx"
    files = [good, missing, empty, tmp_path, cut, also_good]
    files = [str(file) for file in files]

    assert main(files) == 2
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines() if " x " in line] == [good, also_good]
    assert err.splitlines() == [
        f"{missing}:1: expected a readable file, got: no such file or directory",
        f"{empty}:1: expected a file that begins with %%MatrixMarket, got ''; "
        "scipy.io.mmwrite writes one",
        f"{tmp_path}:1: expected a readable file, got: is a directory",
        f"{cut}:5: expected 4 entries, got the end of the file after 3",
    ]

    status, printed, json_err = run(*files)
    assert (status, json_err) == (2, err)
    assert [m["name"] for m in printed["matrices"]] == [good, also_good]
    assert [f"{e['file']}:{e['line']}: {e['message']}" for e in printed["errors"]] == (
        err.splitlines()
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate\n9 TiB"),
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_what_does_not_fit_in_memory_is_left_out(matrix, run, monkeypatch, error):
    large, small = matrix("large", _real(6, 3)), matrix("small", _real(3, 3))

    def measure(a, progress):
        progress("lq")
        if len(a) == 6:
            raise error
        return _empty_report()

    monkeypatch.setattr(cli, "measure", measure)
    status, printed, err = run(large, small)
    assert status == 2
    assert [m["name"] for m in printed["matrices"]] == [small]
    (refused,) = printed["errors"]
    assert (refused["file"], refused["line"]) == (large, None)
    reason = " ".join(str(error).split()) or "MemoryError"
    assert refused["message"] == f"does not fit in memory (lq): {reason}"
    assert err == f"{large}: {refused['message']}\n"


def test_a_sparse_file_too_large_is_left_out(tmp_path, matrix, run):
    path = tmp_path / "huge.mtx"
    path.write_text("%%MatrixMarket matrix coordinate real general\n1000000 1000000 0\n")
    status, printed, err = run(str(path), matrix("a", _real(6, 3)))
    assert (status, len(printed["matrices"])) == (2, 1)
    assert err.endswith("got 1000000 x 1000000, 7.45e+03 GiB\n")
    assert err.startswith(f"{path}:2: expected at most ")


def test_other_errors_of_jax_are_not_hidden(monkeypatch):
    def measure(a, progress):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(cli, "measure", measure)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        main([])


def test_standard_input(monkeypatch, run):
    content = b"%%MatrixMarket matrix array real general\n1 1\n3\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    status, printed, _ = run("-")
    assert (status, printed["matrices"][0]["name"]) == (0, "<stdin>")
    status, printed, err = run("-")  # read already
    assert (status, printed["matrices"], err[:10]) == (2, [], "<stdin>:1:")
    with pytest.raises(SystemExit):
        main(["-", "-"])


def test_an_empty_name_is_told(run):
    status, printed, err = run("")
    (refused,) = printed["errors"]
    assert (status, refused["file"]) == (2, "''")
    assert refused["message"] == "expected a readable file, got: an empty name"
    assert err == f"'':1: {refused['message']}\n"


def test_only_bad_files_leave_stdout_empty(capsys):
    assert main(["no such file"]) == 2
    assert capsys.readouterr().out == ""


def test_complex_file_in_a_real_type(matrix, capsys):
    path = matrix("a", [[1 + 2j]])
    assert main(["--dtype", "float64", path]) == 2
    expected = f"{path}:1: expected a field that fits float64, got complex\n"
    assert capsys.readouterr().err == expected


def test_an_odd_file_name_stays_on_one_line(capsys):
    assert main(["a\nb\x1b[1m\udcff.mtx"]) == 2
    assert capsys.readouterr().err.startswith(r"a\nb\x1b[1m\udcff.mtx:1: expected")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"jaxqr {jaxqr.__version__}\n"


@pytest.mark.parametrize("arguments", [["--dtype", "int8"], ["--loud"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m jaxqr" in capsys.readouterr().err


# Manners.


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_terminals(matrix, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    path = matrix("a", _real(6, 3))
    assert main([path, "missing.mtx"]) == 2
    out, err = capsys.readouterr()
    complaint = "missing.mtx:1: expected a readable file, got: no such file or directory\n"
    if terminal:
        assert f"[1/2] {path}: pivoted_qr ..." in err
        assert "\r\x1b[K" + complaint in err
        assert err.endswith("\r\x1b[K")
    else:
        assert err == complaint
    assert "\x1b" not in out


@pytest.mark.parametrize("load", [0.0, 1e4])
def test_a_busy_machine_is_pointed_out(matrix, capsys, monkeypatch, load):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load), raising=False)
    assert main([matrix("a", _real(6, 3))]) == 0
    *_, before, last = capsys.readouterr().out.splitlines()
    if load:
        assert last.startswith("The machine is busy (load 10000 on ")
        assert before.startswith("jaxqr ")
    else:
        assert last.startswith("jaxqr ")


def test_64_bit_types_are_enabled_only_inside(matrix):
    before = jnp.zeros(()).dtype, jax.config.jax_enable_x64
    assert main([matrix("a", _real(6, 3))]) == 0
    assert (jnp.zeros(()).dtype, jax.config.jax_enable_x64) == before


def test_silence_ends_on_long_work(matrix, capsys, monkeypatch):
    def slow(a, progress):
        progress("qr")
        time.sleep(0.5)
        return _empty_report()

    monkeypatch.setattr(cli, "measure", slow)
    monkeypatch.setattr(cli_progress, "PATIENCE", 0.1)
    path = matrix("a", _real(6, 3))
    assert main([path]) == 0
    # After 0.1 and 0.3 seconds; a slow machine may miss the second.
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2
    assert set(lines) == {f"[1/1] {path}: qr ..."}


def _empty_report():
    return measuring.Report((0, 0), "float64", Decimal(0), None, 0, 0, 0, [])


def test_interrupt_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(a, progress):
        progress("qr")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "measure", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err == "interrupted while doing [1/1] Longley: qr\n"


_DEAF = """
import hashlib, sys
import jaxqr
from jaxqr import cli

def deaf(a, progress):
    progress("compiled code")
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, and no bytecode between

cli.measure = deaf
sys.exit(cli.main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupt_is_heard_in_compiled_code():
    command = [sys.executable, "-c", _DEAF]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err == "interrupted while doing [1/1] Longley: compiled code\n"


@pytest.mark.parametrize(
    "arguments",
    [["jaxqr"], ["jaxqr", "--version"], ["jaxqr", "tune", "--help"], ["jaxqr.upstream", "--help"]],
    ids=" ".join,
)
def test_a_closed_pipe_ends_it_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(writer)
    # On a busy machine what takes long shows its progress.
    told = [line for line in done.stderr.splitlines() if not line.startswith(b"[")]
    assert (done.returncode, told) == (141, [])


_NOTHING_MEASURED = """
import sys
from decimal import Decimal
from jaxqr import cli
from jaxqr._linalg import tuning
from jaxqr._linalg.crossovers import SHIPPED
from jaxqr.cli import measuring, tune

cli.measure = lambda *_: measuring.Report((0, 0), "float64", Decimal(0), None, 0, 0, 0, [])
tune.why_busy = lambda: ""
tune.tune = lambda *_: (tuning.Entry("cpu", "cpu", *tuning.release(), SHIPPED), [])
sys.exit(cli.main())
"""
FULL = "standard output: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirected", "arguments", "status", "out", "err"),
    [
        (">/dev/full", [], 2, "", FULL),
        (">/dev/full", ["--json"], 2, "", FULL),
        (">/dev/full", ["--help"], 2, "", FULL),
        (">/dev/full", ["tune", "--dry-run"], 2, "", FULL),
        (">&-", [], 0, "", ""),
        ("2>&-", [], 0, "Longley: 0 x 0", ""),
        ("2>&-", ["missing.mtx"], 2, "", ""),
        ("2>&-", ["tune", "--dry-run"], 0, "{\n", ""),
        ("2>/dev/full", ["missing.mtx"], 2, "", ""),
        ("2>/dev/full", ["--loud"], 2, "", ""),
        (
            "<&-",
            ["-"],
            2,
            "",
            "<stdin>:1: expected a readable file, got: standard input is closed\n",
        ),
    ],
)
def test_streams_that_are_full_or_closed(tmp_path, redirected, arguments, status, out, err):
    shell = ["sh", "-c", f'exec "$@" {redirected}', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", _NOTHING_MEASURED, *arguments],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, err)
    assert done.stdout.startswith(out)
    assert bool(done.stdout) == bool(out)


def test_runs_are_timed_in_turns(monkeypatch):
    order = []
    medians = measuring._interleaved_medians([lambda: order.append(0), lambda: order.append(1)])
    assert order == [0, 1] * 3
    assert len(medians) == 2
    assert all(median > 0 for median in medians)


# The two things that the verdict stands on: differences and data.


@pytest.mark.parametrize("condition", [1e0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize(("m", "n", "k"), [(8, 4, 4), (4, 4, 4), (4, 7, 4), (6, 6, 2), (1, 1, 1)])
def test_differences_are_the_derivative(m, n, k, condition):
    """Q' R + Q R' = A', R' upper triangular with a real diagonal, Q^H Q' skew: that is unique."""
    b = _random(m, n, "complex128")
    u, _, vh = np.linalg.svd(b[:, :k], full_matrices=False)
    b[:, :k] = (u * np.geomspace(1, 1 / condition, k)) @ vh
    found = differentiate(b, k, 2, np.random.default_rng(0))
    q, r = np.linalg.qr(b[:, :k])
    signs = np.sign(r.diagonal().real)
    q = q * signs
    r = q.conj().T @ b
    assert found.condition <= 2 * condition * np.sqrt(k)
    for direction, (dq, dr) in zip(found.directions, found.derivatives, strict=True):
        size = np.linalg.norm(dq)
        allowed = 100 * found.error * max(size, 1.0)
        lengths = found.lengths
        product = dq @ r[:, :k] + q @ dr[:, :k]
        assert np.linalg.norm((product - direction[:, :k]) / lengths[:k]) < allowed
        beyond = dq.conj().T @ b[:, k:] + q.conj().T @ direction[:, k:] - dr[:, k:]
        assert np.linalg.norm(beyond / lengths[k:]) < allowed
        assert np.linalg.norm(np.tril(dr, -1) / lengths) < allowed
        assert np.linalg.norm(dr.diagonal().imag / lengths[:k]) < allowed
        skew = q.conj().T @ dq
        assert np.linalg.norm(skew + skew.conj().T) < allowed


def test_longley_gives_the_certified_coefficients():
    rows = [[Fraction(x) for x in row] for row in DESIGN.tolist()]
    response = [Fraction(y) for y in RESPONSE.tolist()]
    columns = list(zip(*rows, strict=True))
    gram = [
        [sum(x * y for x, y in zip(left, right, strict=True)) for right in (*columns, response)]
        for left in columns
    ]
    solution = _solve(gram)
    np.testing.assert_allclose([float(x) for x in solution], CERTIFIED, rtol=2e-14)


def _solve(augmented):
    """Gauss and Jordan in exact arithmetic; a Gram matrix needs no pivoting."""
    size = len(augmented)
    for i in range(size):
        pivot = augmented[i][i]
        augmented[i] = [x / pivot for x in augmented[i]]
        for j in range(size):
            if j != i:
                factor = augmented[j][i]
                augmented[j] = [
                    x - factor * y for x, y in zip(augmented[j], augmented[i], strict=True)
                ]
    return [row[-1] for row in augmented]
