"""The command `table`: of one file, `all` files of experiments/, `merge` of shards, and the `page` of results."""

from collections.abc import Callable
from typing import Any

from attention_jax.errors import UserError

Start = Callable[..., None]  # prepares for the first use of JAX, for the given task if there is one


def call_table(start: Start, file: str, folders: list[str], shard: str | None, **options: Any) -> int:
    """Runs a table file, or one of `all`, `merge` and `page`; returns the exit code."""
    if file != "merge" and folders:
        raise UserError(f"table {file} takes no folders such as {folders[0]}: give these to table merge.")
    if file != "all" and shard:
        raise UserError(f"table {file}: --shard={shard} goes with table all; --rows takes rows of one table.")
    if file == "all":
        return _run_all(start, shard, **options)
    if file == "merge":
        return _merge(folders, options["workdir"])
    if file == "page":
        from attention_jax.tables.page import write_page

        print(f"{write_page('experiments', options['output'])} is written.")
        return 0
    return _run_one(start, file, **options)


def _run_one(start: Start, file: str, rows: str | None, files: bool, **options: Any) -> int:
    from attention_jax.tables.table import load_table

    table, labels = load_table(file), rows.split(",") if rows else None
    scale = table.scale(options["scale"])
    start(table.base_config(scale).task if table.base else None)
    from attention_jax.cli.files import print_files
    from attention_jax.tables.runner import run_table

    code = run_table(file, rows=labels, **options)
    if files and not code:
        print_files(file, *(table.config(row, scale) for row in table.rows if row.label in table.select(labels)))
    return code


def _run_all(start: Start, shard: str | None, rows: str | None, files: bool, aa: bool, **options: Any) -> int:
    if rows or files or aa:
        raise UserError("table all takes no --rows, --files or --aa: name one table file for these.")
    start()
    from attention_jax.tables.all_tables import run_all_tables

    return run_all_tables(shard=shard, **options)


def _merge(folders: list[str], workdir: str | None) -> int:
    if not (folders and workdir):
        raise UserError("table merge: give the folders of the shards, and --workdir=DIR for the runs of all.")
    from attention_jax.tables.all_tables import merge_workdirs

    print(
        f"{merge_workdirs(folders, workdir)} runs are copied to {workdir}: ./launch.sh table all --workdir={workdir} goes on."
    )
    return 0
