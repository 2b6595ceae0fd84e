"""Table files: what they promise, and mistakes in them."""

import pytest

from attention_jax.errors import UserError
from attention_jax.tables.runner import run_table
from attention_jax.tables.table import load_table
from tests.helpers.small_table import ROOT, ROWS, call, write_table


def test_a_stranger_adds_a_row_in_one_line(tmp_path):
    text = (ROOT / "experiments/quickstart.py").read_text()
    text = text.replace('base = "..', f'base = "{ROOT}')
    anchor = '    {"label": "none", "overrides": _ARROW},\n'
    assert text.count(anchor) == 1
    file = tmp_path / "mine.py"
    file.write_text(
        text.replace(anchor, anchor + '    {"label": "half decay", "overrides": {"optimizer.weight_decay": 2.5e-4}},\n')
    )
    assert [row.label for row in load_table(file).rows][:2] == ["none", "half decay"]
    code, out = call(file, scale="smoke", rows=["half decay"], seeds=1, workdir=tmp_path / "w", dry_run=True)
    assert code == 0
    assert "optimizer.weight_decay=0.00025" in out and f"seed 0: would run: {tmp_path / 'w/half-decay/0'}" in out


def test_the_quickstart_is_the_table_it_promises():
    table = load_table(ROOT / "experiments/quickstart.py")
    assert [row.label for row in table.rows] == ["none", "BAM", "added"]
    assert table.scales[table.scale(None)].seeds >= 3
    smoke = table.config(table.rows[1], "smoke")
    assert smoke.model.gate == "bam" and smoke.total_steps <= 10
    assert len(table.next_commands) == 3


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        ('{"label": "a", "peices": ()}', {}, r"row 'a' has no 'peices' \(did you mean 'pieces'\?\)"),
        ('{"pieces": ()}', {}, r"rows\[0\] has no 'label', which must be given"),
        ('{"label": "a"}, {"label": "A!"}', {}, "'a' and 'A!' share the folder 'a'"),
        ('{"label": "a"}, {"label": "a"}', {}, "'a' and 'a' share the folder 'a'"),
        ('{"label": "a", "against": "plane"}, {"label": "plain"}', {}, r"against='plane' is no row \(did you mean 'plain'\?\)"),
        ('{"label": "a", "against": "a"}', {}, "compared with itself"),
        (f'{{"label": "{"잔차" * 50}"}}', {}, "at most 200 bytes of them"),
        ('{"label": "a", "pieces": "ema"}', {}, "pieces='ema' is not right: give a tuple"),
        ('{"label": "a", "published": 3}', {}, "published=3 is not right"),
        ('{"label": "a, b"}', {}, "without a comma"),
        ('"a"', {}, r"rows\[0\]='a' is not right: give a dict"),
        ('{"label": "a", "kind": 3}', {}, "row 'a': kind=3 is not right: give a text"),
        ("", {}, "at least one row"),
        ('{"label": "a"}', {"attention_of": "b"}, "attention_of='b' is no row"),
        ('{"label": "a"}', {"nots": "x"}, r"has no 'nots' \(did you mean 'notes'\?\)"),
        ('{"label": "a"}', {"title": 3}, "title=3 is not right: give a text"),
        ('{"label": "a"}', {"scales": {"x": {"seed": 3}}}, r"scales\['x'\] has no 'seed' \(did you mean 'seeds'\?\)"),
        ('{"label": "a"}', {"scales": {"x": {"seeds": 0}}}, "seeds=0 is not right"),
        ('{"label": "a"}', {"scales": {"x": {"rows": ["b"]}}}, r"scales\['x'\]: rows='b' is no row"),
        ('{"label": "a"}', {"scales": {}}, "at least one row and one scale"),
        ('{"label": "a"}', {"next_commands": ["ls"]}, r"give pairs \(why, command\)"),
        ('{"label": "a", "network": "resnet18"}', {}, "row 'a': network='resnet18' is not right: give a dict"),
        (
            '{"label": "a", "network": {"nam": "resnet18"}}',
            {},
            r"row 'a': network=\{'nam': 'resnet18'\} is not right: give a dict with the name",
        ),
        ('{"label": "a"}', {"scales": {"x": {"seeds": 1, "base": 3}}}, "base=3 is not right: give the path"),
        ('{"label": "a"}', {"measures": ["a:b"]}, "measures=.* is not right: give a dict of name: function"),
        ('{"label": "a"}', {"measures": {"x": "numpy:hypott"}}, r"numpy has no 'hypott' \(did you mean 'hypot'\?\)"),
        ('{"label": "a"}', {"pictures": {"A b": "numpy:hypot"}}, "pictures has 'A b': give a name of small letters"),
        ('{"label": "a"}', {"pictures": {"x": 3}}, r"pictures\['x'\]=3 is not right: give a function"),
    ],
)
def test_mistakes_in_a_table_file(tmp_path, rows, names, message):
    with pytest.raises(UserError, match=message) as caught:
        load_table(write_table(tmp_path, rows, **names))
    assert "\n" not in str(caught.value)


def test_what_a_table_file_must_have(tmp_path):
    (tmp_path / "empty.py").write_text("title = 'x'\n")
    with pytest.raises(UserError, match="a table file has no 'source', which must be given"):
        load_table(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"scale": "tinny"}, r"--scale=tinny: .* has tiny, other \(did you mean 'tiny'\?\)"),
        (ROWS, {"rows": ["c"]}, "no row is called 'c'"),
        (ROWS, {"seeds": 0}, "--seeds=0 is not right"),
        (
            '{"label": "a", "pieces": ("emma",)}',
            {},
            r"row 'a' at scale 'tiny': unknown recipe piece 'emma' \(did you mean 'ema'",
        ),
        ('{"label": "a", "overrides": {"totl_steps": 3}}', {}, r"row 'a' at scale 'tiny': unknown config field 'totl_steps'"),
    ],
)
def test_mistakes_on_the_command_line_and_in_rows(tmp_path, rows, options, message):
    with pytest.raises(UserError, match=message):
        run_table(write_table(tmp_path, rows), workdir=tmp_path / "w", **options)
    assert not (tmp_path / "w").exists()


def test_row_overrides_of_a_scale_stay_where_a_row_names_a_network(tmp_path):
    """The size of a scale counts for a row whose network is another one than the base's."""
    path = tmp_path / "sized.py"
    path.write_text(
        "title = source = 'x'\n"
        f"base = {str(ROOT / 'configs/quickstart.py')!r}\n"
        "rows = [{'label': 'a', 'overrides': {'model.name': 'resnet20'}}, {'label': 'b'}]\n"
        "_size = {'model.widths': (2, 4, 8)}\n"
        "scales = {'base': {'overrides': _size}, 'rows': {'row_overrides': _size}}\n"
    )
    table = load_table(path)
    found = {(row.label, scale): table.config(row, scale).model.get("widths") for row in table.rows for scale in table.scales}
    assert found == {("a", "base"): None, ("a", "rows"): (2, 4, 8), ("b", "base"): (2, 4, 8), ("b", "rows"): (2, 4, 8)}


def test_a_scale_may_train_some_rows_alone(tmp_path):
    path = write_table(tmp_path, ROWS, scales={"few": {"seeds": 1, "rows": ["b"]}, "all": {"seeds": 1}})
    found = {scale: call(path, scale=scale, workdir=tmp_path / "w", dry_run=True)[1] for scale in ("few", "all")}
    assert {scale: (out.count("\na: "), out.count("\nb: ")) for scale, out in found.items()} == {"few": (0, 1), "all": (1, 1)}
    with pytest.raises(UserError, match="no row is called 'a'"):
        run_table(path, scale="few", rows=["a"], workdir=tmp_path / "w", dry_run=True)
