"""Crossovers: what a user's table changes, what no table may, and who writes it."""

import dataclasses
import json
import os
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxqr
from jaxqr import cli
from jaxqr._linalg import tuning
from jaxqr._linalg.crossovers import NEVER, NOTHING, SHIPPED, Crossovers
from jaxqr._linalg.tuning import Entry, default_path, load, save
from jaxqr.cli import tune

SMALL, DEEP, WIDE = (100, 6, 3), (600, 32), (20, 40)


@pytest.fixture(autouse=True)
def _read_anew():
    tuning._read.cache_clear()
    yield
    tuning._read.cache_clear()


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    monkeypatch.setenv("JAXQR_TUNING", str(path))
    return path


def entry(crossovers=NOTHING, **other):
    kind = jax.devices()[0].device_kind
    return dataclasses.replace(Entry("cpu", kind, *tuning.release(), crossovers), **other)


def program(shape, f=jaxqr.qr, platform="cpu", dtype="float32"):
    """The text of a program for a platform, made anew by the table that holds.

    Private functions have numbers in it, which JAX 0.10 counts on for platforms that it leaves out:
    here they have them in the order in which they come.
    """
    jax.clear_caches()
    tuning._read.cache_clear()
    args = (jax.ShapeDtypeStruct(shape, dtype),)
    lowered = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,))
    order = {}
    return re.sub(
        r"@(\w+)_\d+\b",
        lambda m: f"@{m[1]}_{order.setdefault(m[0], len(order))}",
        lowered.as_text(),
    )


def r_alone(a):
    return jaxqr.qr(a, mode="r")


def gradient(a):
    return jax.grad(lambda a: jnp.sum(jnp.abs(r_alone(a))))(a)


def solve(a):
    return jaxqr.lstsq(a, a[..., 0])


CASES = [(SMALL, jaxqr.qr), (DEEP, jaxqr.qr), (DEEP, r_alone), (WIDE, jaxqr.qr), (SMALL, gradient)]
CASES += [(SMALL, solve), (DEEP, solve)]


def both_platforms():
    cases = [(SMALL, gradient), (DEEP, solve), (WIDE, jaxqr.qr)]
    return [program(shape, f, p) for shape, f in cases for p in ("cpu", "cuda")]


# --- What a table changes, and what it does not


def test_without_an_entry_that_applies_nothing_changes(file, monkeypatch):
    monkeypatch.setenv("JAXQR_TUNING", "none")
    shipped = both_platforms()
    monkeypatch.setenv("JAXQR_TUNING", str(file))
    foreign = [
        entry(device_kind="abacus"),
        entry(jax="0.1"),
        entry(jaxlib="0.1"),
        entry(platform="tpu", device_kind="TPU v9"),
    ]
    save(foreign, file)
    assert both_platforms() == shipped
    save([entry(SHIPPED)], file)
    assert both_platforms() == shipped


def test_table_of_this_machine_decides(file, monkeypatch):
    save([entry()], file)
    for shape in (SMALL, DEEP, WIDE):
        plain = program(shape, lambda a: jaxqr.qr(a, method="householder"))
        assert program(shape).count("custom_call") == plain.count("custom_call")
    wanted = dataclasses.replace(SHIPPED, least_batch=1)
    save([entry(wanted), entry(device_kind="abacus")], file)
    assert "geqrf" not in program((2, 6, 3))
    monkeypatch.setenv("JAXQR_TUNING", "none")
    assert "geqrf" in program((2, 6, 3))


@pytest.mark.parametrize(("shape", "f"), CASES)
def test_table_of_a_gpu_decides_there_and_nowhere_else(shape, f, file, monkeypatch):
    monkeypatch.setenv("JAXQR_TUNING", "none")
    shipped = {p: program(shape, f, p) for p in ("cpu", "cuda", "rocm")}
    monkeypatch.setenv("JAXQR_TUNING", str(file))
    save([entry(SHIPPED, platform="cuda", device_kind="NVIDIA H100")], file)
    assert program(shape, f, "cuda") != shipped["cuda"]
    assert program(shape, f, "cpu") == shipped["cpu"]
    assert program(shape, f, "rocm") == shipped["rocm"]


def test_two_kinds_of_gpu_decide_nothing_where_there_is_none(file):
    save([], file)
    plain = program(DEEP, platform="cuda")
    kinds = ("NVIDIA A100", "NVIDIA H100")
    save([entry(SHIPPED, platform="cuda", device_kind=kind) for kind in kinds], file)
    assert program(DEEP, platform="cuda") == plain


def test_complex_products_follow_the_table(file):
    eager = dataclasses.replace(NOTHING, least_complex_product=1)
    save([entry()], file)
    usual = program(DEEP, gradient, dtype="complex64")
    save([entry(eager)], file)
    assert program(DEEP, gradient, dtype="complex64") != usual


def test_no_table_gives_an_algorithm_what_it_cannot_do(file):
    """Thresholds that let everything in: the factors are right, whatever the shape."""
    anything = Crossovers(
        **{
            field.name: NEVER if field.name.startswith("most") else 0.5
            for field in dataclasses.fields(Crossovers)
        }
        | {"most_unrolled": 0, "most_unrolled_in_rules": 0}
    )
    save([entry(anything)], file)
    for shape in ((5, 3), (4, 4), (3, 5)):
        jax.clear_caches()
        tuning._read.cache_clear()
        a = jax.random.normal(jax.random.key(0), shape, "float64")
        q, r = jaxqr.qr(a)
        assert jnp.max(jnp.abs(q @ r - a)) < 1e-13


# --- The file


def test_round_trip(tmp_path):
    path = tmp_path / "a" / "folder" / "tuning.json"
    entries = [entry(), entry(SHIPPED, platform="cuda", device_kind="NVIDIA H100")]
    save(entries, path)
    assert load(path) == entries
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    path = tmp_path / "tuning.json"
    path.mkdir()
    with pytest.raises((IsADirectoryError, PermissionError)):
        save([entry()], path)
    assert list(tmp_path.iterdir()) == [path]


def test_link_is_written_through(tmp_path):
    path, link = tmp_path / "of_this_machine.json", tmp_path / "tuning.json"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no links here")
    save([entry()], link)
    assert link.is_symlink()
    assert load(path) == [entry()]


def test_table_is_read_once(file):
    save([entry()], file)
    first = tuning.crossovers()
    assert first["cpu"] == NOTHING
    file.unlink()
    assert tuning.crossovers() is first


GOOD = json.loads(tuning.text([Entry("cpu", "cpu", "1", "1", SHIPPED)]))


def changed(**crossovers):
    broken = json.loads(json.dumps(GOOD))
    broken["entries"][0]["crossovers"] |= crossovers
    return json.dumps(broken)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100000,
        '{"format": "another"}',
        json.dumps(GOOD | {"entries": 3}),
        json.dumps(GOOD | {"entries": [{}]}),
        json.dumps(GOOD | {"entries": [GOOD["entries"][0] | {"jax": 1}]}),
        json.dumps(GOOD | {"entries": [GOOD["entries"][0] | {"crossovers": []}]}),
        changed(another=1),
        changed(least_batch="many"),
        changed(least_batch=True),
        changed(least_batch=-1),
        changed(least_batch=float("nan")),
        changed(most_columns=float("inf")),
        changed(most_columns=10**400),
        changed(most_unrolled=1000),
        b"\xff\xfe\x00",
    ],
    ids=map(str, range(18)),
)
def test_broken_table_is_one_warning(text, file):
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.warns(UserWarning, match=r"tuning\.json is left out: .*JAXQR_TUNING=none") as found:
        assert tuning.crossovers() == {"cpu": SHIPPED}
    assert len(found) == 1
    assert tuning.crossovers() == {"cpu": SHIPPED}  # and not a second one


@pytest.mark.parametrize(("platform", "shipped"), [("cpu", SHIPPED), ("cuda", NOTHING)])
def test_what_a_table_does_not_say_is_as_shipped(platform, shipped, file):
    """One of a release of jaxqr that had fewer crossovers goes on being read."""
    table = json.loads(tuning.text([entry(SHIPPED, platform=platform)]))
    table["entries"][0]["crossovers"] = {"least_width": 7}
    file.write_text(json.dumps(table))
    (read,) = load(file)
    assert read.crossovers == dataclasses.replace(shipped, least_width=7)


def test_file_that_the_environment_names_has_to_be_there(file):
    with pytest.warns(UserWarning, match="No such file.* tune` writes a new one;"):
        assert tuning.crossovers() == {"cpu": SHIPPED}
    file.write_text("[]")
    tuning._read.cache_clear()
    with pytest.warns(UserWarning, match="tune` does not overwrite it;"):
        assert tuning.crossovers() == {"cpu": SHIPPED}


def test_an_empty_table_is_one_too():
    with tuning.forced({}):
        assert tuning.crossovers() == {}


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("linux", {}, "home/.cache/jaxqr/tuning.json"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/jaxqr/tuning.json"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg"}, "xdg/jaxqr/tuning.json"),
        ("darwin", {}, "home/Library/Caches/jaxqr/tuning.json"),
        ("win32", {}, "home/AppData/Local/jaxqr/Cache/tuning.json"),
        ("win32", {"LOCALAPPDATA": "{}/local"}, "local/jaxqr/Cache/tuning.json"),
    ],
)
def test_place_of_the_file(system, environment, expected, tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "JAXQR_TUNING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.setattr(tuning.sys, "platform", system)
    assert tuning.path() == default_path() == tmp_path / expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not there, and need not be
        assert tuning.crossovers() == {"cpu": SHIPPED}
    default_path().mkdir(parents=True)
    tuning._read.cache_clear()
    with pytest.warns(UserWarning, match=r"tuning\.json is left out"):
        assert tuning.crossovers() == {"cpu": SHIPPED}
    default_path().rmdir()
    save([entry()], default_path())
    tuning._read.cache_clear()
    assert tuning.crossovers() == {"cpu": NOTHING}
    monkeypatch.setenv("JAXQR_TUNING", "none")
    tuning._read.cache_clear()
    assert tuning.path() is None
    assert tuning.crossovers() == {"cpu": SHIPPED}


# --- Who writes it

TINY = tune.Effort(sample=0.0, lead=0.0, rounds=1, largest=4)


def quiet(doing):
    pass


def test_algorithm_must_win_up_to_the_crossover_and_in_every_type(monkeypatch):
    won = {(8, "float32"): 2.0, (8, "float64"): 1.06, (16, "float32"): 2.0, (16, "float64"): 1.04}
    asked = []

    def advantage(ladder, platform, shape, dtype, effort):
        asked.append((shape[-1], dtype))
        return won[asked[-1]]

    monkeypatch.setattr(tune, "advantage", advantage)
    effort = dataclasses.replace(TINY, largest=NEVER)
    ladder = tune.Ladder("most_columns", (8, 16, 32), lambda n: (2 * n, n), jaxqr.qr, SHIPPED)
    found, left_out = tune.tune(effort, quiet, [ladder])
    assert found.crossovers == dataclasses.replace(SHIPPED, most_columns=8)
    assert asked == list(won)
    assert not left_out
    won[8, "float32"] = 1.0
    found, _ = tune.tune(effort, quiet, [ladder])
    assert found.crossovers.most_columns == 0
    least = dataclasses.replace(ladder, name="least_columns")
    found, _ = tune.tune(effort, quiet, [least])
    assert found.crossovers.least_columns == NEVER


def test_what_there_is_no_time_for_stays_as_it_was():
    found, left_out = tune.tune(dataclasses.replace(TINY, total=0.0), quiet, tune.LADDERS)
    assert found.crossovers == SHIPPED
    assert left_out == [ladder.name for ladder in tune.LADDERS]
    assert found.key == ("cpu", jax.devices()[0].device_kind, *tuning.release())


def test_every_crossover_has_a_ladder_from_the_sure_side():
    assert {ladder.name for ladder in tune.LADDERS} == {
        field.name for field in dataclasses.fields(Crossovers)
    }
    for ladder in tune.LADDERS:
        descending = ladder.name.startswith("least")
        assert list(ladder.sizes) == sorted(ladder.sizes, reverse=descending)
        assert getattr(SHIPPED, ladder.name) in ladder.sizes


@pytest.mark.parametrize("ladder", tune.LADDERS, ids=lambda ladder: ladder.name)
def test_ladders_compare_two_programs(ladder):
    """Where the algorithm may be chosen it is, at every size: the programs differ."""
    for size in ladder.sizes:
        shape = jax.ShapeDtypeStruct(ladder.shape(size), ladder.dtypes[0])
        texts = set()
        for table in (ladder.otherwise, ladder.algorithm):
            with tuning.forced({"cpu": table}):
                texts.add(str(jax.make_jaxpr(ladder.work)(shape)))
        assert len(texts) == 2


def test_times_are_taken_in_turns_after_leads():
    calls = []
    assert tune._sample(lambda: calls.append(0), 5, 0.0) >= 0
    assert len(calls) == 5
    tune._sample(lambda: calls.append(0), 1, 1e-3)
    assert len(calls) > 6


@pytest.fixture(autouse=True)
def _idle(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


@pytest.fixture
def tiny(monkeypatch):
    """One rung of two ladders, of tiny matrices: two that compile quickly."""
    few = [
        dataclasses.replace(ladder, sizes=ladder.sizes[:1], dtypes=ladder.dtypes[:1])
        for ladder in tune.LADDERS
        if ladder.name in ("least_batch", "least_complex_product")
    ]
    monkeypatch.setattr(tune, "LADDERS", few)
    monkeypatch.setattr(tune, "Effort", lambda: TINY)
    return few


@pytest.mark.usefixtures("tiny")
def test_dry_run_prints_the_table_and_writes_nothing(file, capsys):
    assert cli.main(["tune", "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert not file.exists()
    (found,) = printed["entries"]
    assert (found["platform"], found["jax"]) == ("cpu", jax.__version__)
    assert found["crossovers"]["least_batch"] in (512, NEVER)
    assert found["crossovers"]["least_width"] == SHIPPED.least_width


@pytest.mark.usefixtures("tiny")
def test_table_is_written_beside_those_of_others_and_read(file, capsys):
    other = entry(platform="cuda", device_kind="NVIDIA H100")
    save([entry(), other], file)
    assert cli.main(["tune"]) == 0
    assert capsys.readouterr().out == f"written: {file}\n"
    kept, new = load(file)
    assert kept == other
    assert new.key == entry().key
    tuning._read.cache_clear()
    assert tuning.crossovers()["cpu"] == new.crossovers


def test_table_goes_where_it_can(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "tune", lambda *_: (entry(SHIPPED), ["least_width"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning.sys, "platform", "linux")
    monkeypatch.setenv("JAXQR_TUNING", "none")
    assert cli.main(["tune"]) == 0
    out, err = capsys.readouterr()
    assert "It is not read as long as JAXQR_TUNING is none." in out
    assert "no time was left for least_width" in err
    assert load(tmp_path / "jaxqr" / "tuning.json") == [entry(SHIPPED)]
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("JAXQR_TUNING", str(blocked / "tuning.json"))
    assert cli.main(["tune"]) == 2
    assert str(blocked) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ("my notes\n", "Expecting value"),
        ('{"format": "jaxqr tuning 2", "entries": []}', "it is no table of the format"),
        (changed(most_columns=10**400), "most_columns is 1000"),
    ],
)
def test_what_is_no_table_is_not_measured_for(there, reason, file, monkeypatch, capsys):
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("measured"))
    file.write_text(there)
    assert cli.main(["tune"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"{file}: {reason}")
    assert err.endswith("; it is not overwritten\n")
    assert (out, err.count("\n")) == ("", 1)
    assert file.read_text() == there


def no_room(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_where_nothing_can_be_written_nothing_is_measured(file, monkeypatch, capsys):
    monkeypatch.setattr(tuning.tempfile, "TemporaryDirectory", no_room)
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("measured"))
    assert cli.main(["tune"]) == 2
    assert capsys.readouterr() == ("", f"{file}: Permission denied\n")
    monkeypatch.setattr(tune, "tune", lambda *_: (entry(SHIPPED), []))
    assert cli.main(["tune", "--dry-run"]) == 0


def test_what_was_measured_and_cannot_be_written_is_printed(file, monkeypatch, capsys):
    other = entry(device_kind="abacus")
    save([other], file)
    monkeypatch.setattr(tune, "tune", lambda *_: (entry(SHIPPED), []))
    monkeypatch.setattr(tuning, "save", no_room)
    assert cli.main(["tune"]) == 2
    out, err = capsys.readouterr()
    assert out == tuning.text([other, entry(SHIPPED)])
    assert err == f"{file}: Permission denied\n"


def test_a_busy_machine_is_pointed_out(file, monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (1e4, 0.0, 0.0), raising=False)
    monkeypatch.setattr(tune, "tune", lambda *_: (entry(SHIPPED), []))
    assert cli.main(["tune"]) == 0
    assert "The machine is busy (load 10000 on" in capsys.readouterr().err


def test_what_is_spoilt_in_the_cache_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "tune", lambda *_: (entry(SHIPPED), []))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAXQR_TUNING", raising=False)
    default_path().parent.mkdir(parents=True)
    default_path().write_text("{")
    assert cli.main(["tune"]) == 0
    assert load(default_path()) == [entry(SHIPPED)]


def test_an_empty_file_is_written(file, monkeypatch):
    monkeypatch.setattr(tune, "tune", lambda *_: (entry(SHIPPED), []))
    file.touch()
    assert cli.main(["tune"]) == 0
    assert load(file) == [entry(SHIPPED)]


def test_file_named_tune_is_within_reach(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "main", lambda argv: pytest.fail("not the subcommand"))
    Path("tune").write_text("%%MatrixMarket matrix array real general\n1 1\nword\n")
    assert cli.main(["./tune"]) == 2
    assert "tune:3" in capsys.readouterr().err
