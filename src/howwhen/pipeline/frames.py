"""A run's records as long tables, for Arrow and pandas.

Batches of rows come one file of the run at a time, so a long run need not fit in memory to be
exported. pyarrow and pandas are imported only when a table is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from howwhen.errors import MissingExtraError, SettingsError
from howwhen.pipeline.files import StepName
from howwhen.pipeline.reader import RunReader
from howwhen.pipeline.rows import (
    ROWS,
    TABLE_NAMES,
    Row,
    TableName,
    TokenRow,
    grade_row,
    ladder_row,
    problem_row,
    sentence_rows,
    token_rows,
)
from howwhen.records import Annotation, Split, titles_of

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_STEPS: dict[TableName, StepName] = {
    "ladder": "measure",
    "grades": "measure",
    "tokens": "hybrid",
    "decisions": "hybrid",
    "sentences": "collect",
    "problems": "collect",
}
"""The step that makes each table."""
_NO_FRAMES = "tables need pandas and pyarrow; type: pip install 'howwhen[frames]'"


@dataclass(frozen=True)
class RunTables:
    """The tables of one run."""

    run: RunReader

    def available(self) -> list[TableName]:
        """The tables whose step is finished."""
        finished = self.run.finished_steps()
        return [name for name in TABLE_NAMES if _STEPS[name] in finished]

    def batches(self, name: str, rung: str | None = None) -> Iterator[list[Row]]:
        """The rows of a table, in batches.

        Args:
            name: of the table.
            rung: keep only rows of this rung.

        Raises:
            SettingsError: no such table, or a rung for a table that has none or that was not run.
            StoreError: the step that makes the rows is not finished, or is damaged.
        """
        table = check_table(name)
        self.run.finished(_STEPS[table])
        if rung is not None:
            if "rung" not in ROWS[table].__annotations__:
                raise SettingsError(f"the table {name} has no rungs; leave rung={rung!r} out")
            self.run.check_rung(rung)
        return getattr(self, f"_{table}")(rung)  # type: ignore[no-any-return]

    def arrow(self, name: str, rung: str | None = None) -> "pa.Table":
        """A table of pyarrow, which polars and DuckDB read too; see `batches`.

        Raises:
            MissingExtraError: pyarrow is not installed.
        """
        pa, schema = load_pyarrow(), arrow_schema(name)
        parts = [to_batch(rows, schema) for rows in self.batches(name, rung)]
        return pa.Table.from_batches(parts, schema)

    def frame(self, name: str, rung: str | None = None) -> "pd.DataFrame":
        """A DataFrame of pandas; see `batches`.

        Whole numbers are `Int64`, which has missing values. The ladder is indexed by rung.

        Raises:
            MissingExtraError: pandas or pyarrow is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError(_NO_FRAMES) from error
        integers = {load_pyarrow().int64(): pd.Int64Dtype()}
        frame: pd.DataFrame = self.arrow(name, rung).to_pandas(types_mapper=integers.get)
        return frame.set_index("rung") if name == "ladder" else frame

    def _ladder(self, rung: str | None) -> Iterator[list[Row]]:
        rungs = self.run.measurement().rungs
        yield [ladder_row(name, rungs[name]) for name in rungs if rung in (None, name)]

    def _grades(self, rung: str | None) -> Iterator[list[Row]]:
        for name in self.run.rungs() if rung is None else [rung]:
            yield [grade_row(name, graded) for graded in self.run.grades(name)]

    def _tokens(self, rung: str | None) -> Iterator[list[Row]]:
        from howwhen.present.detokenize import IncrementalDetokenizer

        tokenizer, titles = self.run.pair.tokenizer, self.run.titles()
        word = lru_cache(maxsize=None)(lambda token: str(tokenizer.decode([token])))
        for traces in self.run.passes(rung):
            rows: list[Row] = []
            for trace in traces:
                stream = IncrementalDetokenizer(tokenizer)
                texts = [stream.add(token.id) for token in trace.tokens]
                rows += token_rows(trace, texts, titles_of(trace.rung, titles), word)
            yield rows

    def _decisions(self, rung: str | None) -> Iterator[list[Row]]:
        column = list(TokenRow.__annotations__).index("is_decision")
        for rows in self._tokens(rung):
            yield [row for row in rows if row[column]]

    def _sentences(self, _: str | None) -> Iterator[list[Row]]:
        titles: list[str] = []
        labels: Iterator[Annotation] | None = None
        if "discover" in self.run.finished_steps():
            titles = [category.title for category in self.run.categories()]
            labels = iter(self.run.annotations())
        for rollout in self.run.rollouts():
            annotations = None if labels is None else list(islice(labels, len(rollout.spans)))
            yield list(sentence_rows(rollout, annotations, titles))

    def _problems(self, _: str | None) -> Iterator[list[Row]]:
        yield [problem_row(problem) for problem in self.run.problems(*Split)]


def check_table(name: str) -> TableName:
    """The table of that name.

    Raises:
        SettingsError: no such table.
    """
    for table in TABLE_NAMES:
        if table == name:
            return table
    raise SettingsError(f"there is no table {name!r}; expected one of {', '.join(TABLE_NAMES)}")


def load_pyarrow() -> Any:
    """The library pyarrow.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError(_NO_FRAMES) from error
    return pyarrow


def arrow_schema(name: str) -> "pa.Schema":
    """The columns of a table with their types. Only columns that may hold None may be null.

    Raises:
        SettingsError: no such table.
        MissingExtraError: pyarrow is not installed.
    """
    pa = load_pyarrow()
    types = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = []
    for column, hint in get_type_hints(ROWS[check_table(name)]).items():
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        columns.append(pa.field(column, types[kinds[0]], nullable=type(None) in kinds))
    return pa.schema(columns)


def to_batch(rows: Sequence[Row], schema: "pa.Schema") -> "pa.RecordBatch":
    """Rows as columns."""
    pa = load_pyarrow()
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
