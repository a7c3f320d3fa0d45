"""The rule offered to JAX: by its defining equations, and as a patch that applies."""

import contextlib
import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import ad
from jax.sharding import Mesh, PartitionSpec

from jaxqr import upstream
from jaxqr.upstream import __main__ as command
from jaxqr.upstream import _patch

SHAPES = [(4, 4), (1, 3), (4, 1), (2, 5, 3), (2, 3, 5)]
EMPTY = [(0, 3), (3, 0), (0, 4, 3), (0, 3, 4), (2, 0, 3)]
DTYPES = ["float32", "float64", "complex64", "complex128"]
KINDS = list(product([False, True], [False, True]))  # full_matrices, pivoting


@pytest.fixture(autouse=True, scope="module")
def _rule():
    # For the whole module: each change of the rule clears JAX's caches.
    with jax.enable_x64(True), upstream.registered():
        yield


@contextlib.contextmanager
def without_rule():
    upstream.unregister()
    try:
        yield
    finally:
        upstream.register()


def random(shape, dtype="float64", seed=0):
    rng = np.random.default_rng([seed, *shape])
    value = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        value = value + 1j * rng.standard_normal(shape)
    return jnp.asarray(value, dtype)


def adjoint(x):
    return x.swapaxes(-1, -2).conj()


def real_dot(x, y):
    """Re sum(x * y): JAX's cotangents are conjugated, so x is not conjugated again."""
    return sum(np.sum((np.asarray(a) * np.asarray(b)).real) for a, b in zip(x, y, strict=True))


def qr(full, pivoting):
    return lambda a: jax.lax.linalg.qr(a, full_matrices=full, pivoting=pivoting)


def tolerance(a):
    k = min(a.shape[-2:])
    worst = np.max(np.linalg.cond(np.asarray(a)[..., :k]))
    return 30 * max(a.shape[-2:]) * float(jnp.finfo(a.dtype).eps) * worst


def assert_tangents(a, da, full, pivoting):
    """The equations that (dQ, dR) satisfy, and no other pair does."""
    f = qr(full, pivoting)
    outputs, tangents = jax.jit(lambda a, da: jax.jvp(f, (a,), (da,)))(a, da)
    (q, r, *p), (dq, dr, *_) = jax.tree.map(np.asarray, (outputs, tangents))
    a, da = np.asarray(a), np.asarray(da)
    for index in p:
        a, da = (np.take_along_axis(x, index[..., None, :], -1) for x in (a, da))
    tol = tolerance(a) * max(1.0, np.abs(dr).max(initial=0))
    k = min(a.shape[-2:])
    spin = adjoint(q) @ dq
    for zero in (
        dq @ r + q @ dr - da,
        spin + adjoint(spin),
        spin[..., k:, k:],
        np.tril(dr, -1),
        np.diagonal(dr, axis1=-2, axis2=-1).imag,
    ):
        assert np.abs(zero).max(initial=0) <= tol


@pytest.mark.parametrize(("full", "pivoting"), KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tangents_satisfy_their_equations(dtype, full, pivoting):
    for shape in SHAPES:
        a = random(shape, dtype)
        if shape[-1] > shape[-2]:
            a = a.at[..., -1].multiply(5)  # pivots from both sides of the leading block
        assert_tangents(a, random(shape, dtype, 1), full, pivoting)


@pytest.mark.parametrize(("full", "pivoting"), KINDS)
def test_the_pullback_is_the_adjoint(full, pivoting):
    for shape in SHAPES:
        a, da = random(shape, "complex128"), random(shape, "complex128", 1)
        f = lambda a: qr(full, pivoting)(a)[:2]  # noqa: E731
        cotangents = tuple(random(x.shape, "complex128", 2) for x in jax.eval_shape(f, a))

        @jax.jit
        def both(a, da, cotangents):
            return jax.jvp(f, (a,), (da,))[1], jax.vjp(f, a)[1](cotangents)  # noqa: B023

        tangents, gradient = both(a, da, cotangents)
        left, right = real_dot(cotangents, tangents), real_dot(gradient, [da])
        assert abs(left - right) <= tolerance(a) * (1 + abs(left))


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
def test_complex_gradients_agree_with_central_differences(shape):
    a, da = random(shape, "complex128"), random(shape, "complex128", 1)
    for pivoting in False, True:
        f = lambda a: qr(False, pivoting)(a)[:2]  # noqa: B023, E731
        cotangents = tuple(random(x.shape, "complex128", 3) for x in jax.eval_shape(f, a))
        gradient = jax.jit(lambda a, c: jax.vjp(f, a)[1](c))(a, cotangents)  # noqa: B023
        h = 1e-5
        difference = [(x - y) / (2 * h) for x, y in zip(f(a + h * da), f(a - h * da), strict=True)]
        expected, actual = real_dot(cotangents, difference), real_dot(gradient, [da])
        assert actual == pytest.approx(expected, abs=1e-8 * np.linalg.cond(a))


@pytest.mark.parametrize(("full", "pivoting"), KINDS)
def test_empty_matrices_to_second_order(full, pivoting):
    for shape in EMPTY:
        a = jnp.zeros(shape)
        loss = lambda a: sum(jnp.sum(x**2) for x in qr(full, pivoting)(a)[:2])  # noqa: E731
        first, second = jax.jit(lambda a: jax.jvp(jax.grad(loss), (a,), (a,)))(a)  # noqa: B023
        assert first.shape == second.shape == shape


def test_equals_the_rule_of_jax_where_that_is_right():
    inputs = [
        (random(shape, dtype), random(shape, dtype, 1))
        for shape, dtype in product([(4, 4), (6, 3), (3, 6), (2, 5, 3)], ["float64", "complex128"])
    ]
    tangents = lambda: [jax.jit(partial(jax.jvp, jnp.linalg.qr))((a,), (da,)) for a, da in inputs]  # noqa: E731
    ours = tangents()
    with without_rule():
        theirs = tangents()
    for (a, _), x, y in zip(inputs, ours, theirs, strict=True):
        for leaf, expected in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=tolerance(a), atol=tolerance(a))


@pytest.mark.parametrize("kind", ["identity", "zero padded", "upper triangular"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_complete_is_finite_and_right_on_columns_that_are_zero_already(kind, dtype):
    a = {
        "identity": jnp.eye(5, 3, dtype=dtype),
        "zero padded": random((5, 3), dtype).at[3:].set(0),
        "upper triangular": jnp.triu(random((5, 3), dtype)),
    }[kind]
    assert_tangents(a, random(a.shape, dtype, 1), True, False)
    w = random((5, 5), dtype, 2)
    project = lambda q: jnp.sum((w * (q @ adjoint(q))).real)  # noqa: E731
    through_complement = jax.grad(lambda a: project(jnp.linalg.qr(a, mode="complete")[0][:, 3:]))
    through_range = jax.grad(lambda a: -project(jnp.linalg.qr(a)[0]))
    np.testing.assert_allclose(
        through_complement(a), through_range(a), rtol=1e-9, atol=tolerance(a)
    )


def test_every_transformation():
    a = random((3, 5, 3))
    loss = lambda a: jnp.sum(jnp.abs(qr(False, True)(a)[1]) ** 3)  # noqa: E731
    each = jnp.stack([jax.grad(loss)(x) for x in a])
    mesh, by_matrix = Mesh(np.array(jax.devices("cpu")[:3]), ("batch",)), PartitionSpec("batch")
    for f in (
        jax.vmap(jax.grad(loss)),
        jax.jit(jax.vmap(jax.grad(loss))),
        jax.grad(loss),
        jax.grad(jax.checkpoint(loss)),
        jax.vmap(jax.jacfwd(loss)),
        jax.vmap(jax.jacrev(loss)),
        jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=by_matrix, out_specs=by_matrix),
        lambda a: jax.lax.map(jax.grad(loss), a),
        lambda a: jax.grad(lambda a: jax.lax.scan(lambda s, x: (s + loss(x), None), 0.0, a)[0])(a),
    ):
        np.testing.assert_allclose(f(a), each, rtol=1e-10, atol=1e-10)
    h, x, dx = 1e-5, a[0], random((5, 3), seed=4)
    second = jax.jvp(jax.grad(loss), (x,), (dx,))[1]
    expected = (jax.grad(loss)(x + h * dx) - jax.grad(loss)(x - h * dx)) / (2 * h)
    np.testing.assert_allclose(second, expected, rtol=1e-5, atol=1e-5)
    hessian = jax.hessian(loss)(x)
    np.testing.assert_allclose(jnp.tensordot(hessian, dx), second, rtol=1e-8, atol=1e-8)
    reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), dx))(x)
    np.testing.assert_allclose(reverse, second, rtol=1e-8, atol=1e-8)


def test_costs_no_more_than_the_rule_of_jax():
    def cost(mode, shape):
        f = lambda a: jax.tree.leaves(jnp.linalg.qr(a, mode=mode))  # noqa: E731
        a = jnp.zeros(shape)
        program = jax.jit(lambda a, c: jax.vjp(f, a)[1](c)).lower(a, f(a)).compile()
        memory = program.memory_analysis().temp_size_in_bytes
        return np.array([program.cost_analysis()["flops"], memory])

    rows = [*product(["reduced", "r"], [(500, 500), (2000, 200), (200, 1000), (1000, 12, 30)])]
    ours = [cost(*row) for row in rows]
    with without_rule():
        theirs = [cost(*row) for row in rows]
    for row, x, y in zip(rows, ours, theirs, strict=True):
        assert np.all(x <= y), (row, x, y)


def test_sharded_batches_stay_sharded():
    script = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxqr import upstream
upstream.register()
mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
for shape in (8, 5, 3), (8, 3, 5):
    a = jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec("batch")))
    for full in False, True:
        for pivoting in False, True:
            def loss(a):
                q, r = jax.lax.linalg.qr(a, full_matrices=full, pivoting=pivoting)[:2]
                return q.sum() + r.sum()
            text = jax.jit(jax.grad(loss)).lower(a).compile().as_text()
            assert "all-gather" not in text
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment["PYTHONPATH"] = str(Path(upstream.__file__).parents[2])
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_what_was_jitted_before_is_traced_again():
    a = jnp.eye(3, 2)
    last = lambda a: jnp.linalg.qr(a, mode="complete")[0][:, 2]  # noqa: E731
    f = jax.jit(jax.jacfwd(last))
    assert bool(jnp.all(jnp.isfinite(f(a))))
    with without_rule():
        assert bool(jnp.any(jnp.isnan(f(a))))
        _, theirs = jax.linearize(last, a)
    assert bool(jnp.all(jnp.isfinite(f(a))))
    # A linearized function is no cache: it keeps the rule it was made with.
    assert bool(jnp.any(jnp.isnan(theirs(a))))


def test_registering_and_unregistering_twice():
    primitive = jax.lax.linalg.qr_p
    ours = ad.primitive_jvps[primitive]
    upstream.register()
    with upstream.registered():
        pass
    assert ad.primitive_jvps[primitive] is ours
    with without_rule():
        upstream.unregister()
        theirs = ad.primitive_jvps[primitive]
        assert theirs is not ours
        with pytest.raises(ZeroDivisionError), upstream.registered():
            raise ZeroDivisionError
        assert ad.primitive_jvps[primitive] is theirs


def test_the_last_block_out_takes_the_rule_along():
    """As where two threads overlap: the second is inside when the first leaves."""
    primitive = jax.lax.linalg.qr_p
    ours = ad.primitive_jvps[primitive]
    with without_rule():
        theirs = ad.primitive_jvps[primitive]
        first, second = contextlib.ExitStack(), contextlib.ExitStack()
        first.enter_context(upstream.registered())
        second.enter_context(upstream.registered())
        first.close()
        assert ad.primitive_jvps[primitive] is ours
        second.close()
        assert ad.primitive_jvps[primitive] is theirs


def stranger(*args, **kwargs):
    """A rule of somebody else's."""


def test_a_rule_put_over_ours_is_left_in_place(monkeypatch):
    monkeypatch.setitem(ad.primitive_jvps, jax.lax.linalg.qr_p, stranger)
    with pytest.raises(RuntimeError, match="left in place"):
        upstream.unregister()
    assert ad.primitive_jvps[jax.lax.linalg.qr_p] is stranger


def test_an_unknown_jax_is_left_as_it_is():
    primitive = jax.lax.linalg.qr_p
    with without_rule():
        theirs = ad.primitive_jvps[primitive]
        linalg = inspect.getmodule(theirs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ad.primitive_jvps, primitive, stranger)
            with pytest.raises(RuntimeError, match="something else has replaced it"):
                upstream.register()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linalg, "qr_jvp_rule", stranger)
            with pytest.raises(RuntimeError, match="its rule takes args, kwargs"):
                upstream.register()
            patch.delattr(linalg, "qr_jvp_rule")
            with pytest.raises(RuntimeError, match="does not know the QR of jax"):
                upstream.register()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upstream, "_own_rule", lambda: stranger)
            with pytest.raises(RuntimeError, match="Nothing was changed"):
                upstream.register()
        assert ad.primitive_jvps[primitive] is theirs


def assert_tangents_of_deep_and_wide():
    dtypes = "float64", "complex128"
    for shape, pivoting, dtype in product([(5, 3), (3, 5)], [False, True], dtypes):
        a = random(shape, dtype).at[..., -1].multiply(5)
        assert_tangents(a, random(shape, dtype, 1), False, pivoting)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("q1 @ -w, w @ u", "q1 @ w, w @ u"),
        ("_triu(c + _H(c))", "_triu(c - _H(c))"),
        ("_triu(c + _H(c))", "(c + _H(c))"),
        ("lax.select(eye, w / 2, w)", "w"),
        ("lax.select(eye, w / 2, w)", "lax.select(eye, c, w)"),
        ("(1 - eye.astype(c.dtype) / 2) * w", "w"),
        ("qt_dx + _H(s) @ r", "qt_dx + s @ r"),
        ("dx = _permute_columns(lax.asarray(dx), p[0])", "pass"),
    ],
)
def test_a_broken_rule_is_noticed(old, new):
    source = Path(upstream.__file__).with_name("_rule.py").read_text(encoding="utf-8")
    assert source.count(old) == 1
    broken = {}
    exec(compile(source.replace(old, new), "broken", "exec"), broken)
    primitive = jax.lax.linalg.qr_p
    ours = ad.primitive_jvps[primitive]
    ad.primitive_jvps[primitive] = broken["qr_jvp_rule"]
    try:
        with pytest.raises(AssertionError):
            assert_tangents_of_deep_and_wide()
    finally:
        ad.primitive_jvps[primitive] = ours


@pytest.fixture
def checkout(tmp_path):
    """The files of the installed JAX that the changes touch."""
    root = Path(jax.__file__).parent
    for name in _patch.LAX, _patch.SCIPY, _patch.JET, "jax/scipy/linalg.py":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root.parent / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("change", _patch.CHANGES)
def test_the_patch_applies_and_is_in_the_style_of_jax(checkout, change):
    out = checkout / "change.patch"
    arguments = ["make-patch", "--jax", str(checkout / "jax"), "--out", str(out)]
    assert command.main([*arguments, "--change", change]) == 0
    patch = out.read_text(encoding="utf-8")
    added = [line[1:] for line in patch.splitlines() if line.startswith("+")]
    assert "jaxqr" not in patch
    width = 100 if _patch.SCIPY in _patch.CHANGES[change].edits else 80  # as JAX has it there
    assert max(map(len, added)) <= width
    assert ("2009.10071" in patch) == (change == "rule")
    environment = {"GIT_CEILING_DIRECTORIES": str(checkout.parent), "PATH": "/usr/bin:/bin"}
    subprocess.run(["git", "apply", str(out)], cwd=checkout, env=environment, check=True)
    for name in _patch.LAX, _patch.SCIPY, _patch.JET:
        compile((checkout / name).read_text(encoding="utf-8"), name, "exec")
    if change == "rule":
        assert _patch.rule_source() in (checkout / _patch.LAX).read_text(encoding="utf-8")
    out.unlink()  # a second time there is nothing to replace
    if change != "qr_multiply":
        assert command.main([*arguments, "--change", change]) == 2
        assert not out.exists()


def test_tests_and_changelog_go_where_their_files_are(checkout):
    (checkout / "tests").mkdir()
    (checkout / _patch.TESTS).write_text(
        "class LinalgTest:\n\n  def testQr(self):\n    pass\n\n  def testNext(self):\n    pass\n"
    )
    (checkout / "CHANGELOG.md").write_text("# Log\n\n## Unreleased\n\n* Changes\n  * a\n\n## 0.1\n")
    patch = _patch.make_patch(checkout, _patch.CHANGES["rule"])
    assert patch.count("+++ b/") == 3
    assert "testQrPivotedWideJvp" in patch
    assert "+* Bug fixes" in patch


def check(change, monkeypatch):
    monkeypatch.setenv("JAX_NUM_GENERATED_CASES", "2")
    root = Path(jax.__file__).parent
    return _patch.check_patch(root, change, _patch.make_patch(root, change))


@pytest.mark.parametrize("change", _patch.CHANGES)
def test_what_comes_with_a_patch_fails_before_and_passes_after(change, monkeypatch):
    good, report = check(_patch.CHANGES[change], monkeypatch)
    assert good, report


def test_a_patch_that_mends_nothing_fails_the_check(monkeypatch):
    change = _patch.CHANGES["geqp3"]
    idle = dataclasses.replace(change, edits={_patch.LAX: lambda text, _: text + "# nothing\n"})
    good, report = check(idle, monkeypatch)
    assert not good
    assert "testGeqp3Default: before 0 of 2 pass, after 0 of 2" in report


@pytest.mark.parametrize("missing", ["def qr_jvp_rule", "def _thin_qr_jvp", "def _triu"])
def test_an_unexpected_source_is_refused(checkout, missing, capsys):
    file = checkout / _patch.LAX
    file.write_text(file.read_text(encoding="utf-8").replace(missing, missing + "_else"))
    out = checkout / "change.patch"
    assert command.main(["make-patch", "--jax", str(checkout), "--out", str(out)]) == 2
    assert "Nothing was written" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("spoilt", [b"# caf\xe9\n", b"\0\n", b"def f(:\n"])
def test_a_source_that_cannot_be_read_is_refused(checkout, spoilt, capsys):
    file = checkout / _patch.LAX
    file.write_bytes(spoilt + file.read_bytes())
    out = checkout / "change.patch"
    assert command.main(["make-patch", "--jax", str(checkout), "--out", str(out)]) == 2
    assert f"{file} is no source that" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_what_cannot_be_read_or_written_is_no_failed_check(checkout, capsys, monkeypatch):
    arguments = ["make-patch", "--jax", str(checkout), "--out"]
    assert command.main([*arguments, "/dev/full"]) == 2
    assert "No space left on device: '/dev/full'" in capsys.readouterr().err
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            command.main([*arguments, str(checkout / "change.patch")])
        assert stop.value.code == 2
        full.buffer.raw.close()
    assert "standard output: No space left on device" in capsys.readouterr().err


def test_what_cannot_be_done_is_told_before_any_work(checkout, capsys, monkeypatch):
    monkeypatch.setattr(command, "make_patch", None)  # which is the work

    def refused(out, *options):
        arguments = ["make-patch", "--jax", str(checkout), "--out", str(out), *options]
        assert command.main(arguments) == 2
        return capsys.readouterr().err

    there = checkout / "change.patch"
    said = refused(checkout / "nowhere" / "change.patch")
    assert f"there is no directory {checkout / 'nowhere'}. Nothing was written" in said
    assert f"--out {checkout} is a directory" in refused(checkout)
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        assert "pip install absl-py" in refused(there, "--check")
    monkeypatch.setenv("PATH", "")
    assert "with git, which is not installed" in refused(there, "--check")
    assert not there.exists()


def test_it_is_there_as_the_readme_writes_it():
    program = "import jaxqr; jaxqr.upstream.register(); jaxqr.distributed.tsqr"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)
