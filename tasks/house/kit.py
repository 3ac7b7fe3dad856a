"""kit: a team's small library for tables, texts, money and days.

Conventions that hold everywhere:

- A table is a list of rows, a row is a dict. Nothing that is passed in is changed.
- A cell is blank if it is missing, None or "". Tests, keys, totals and sorting pass over blank cells.
- `by=` names the column whose values identify a group; a row with a blank one is in no group.
- Groups, and whatever is made of them, are in the order of their first row.
- Money is a whole number of cents. Halves are rounded away from zero.
- A day is a text such as "2024-03-01".
"""

import calendar
import operator
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

Row = dict[str, Any]
Table = list[Row]

_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "equal": operator.eq,
    "over": operator.gt,
    "under": operator.lt,
    "least": operator.ge,
    "most": operator.le,
    "among": lambda cell, values: cell in values,
    "like": lambda cell, text: text.casefold() in str(cell).casefold(),
}


def where(table: Table, column: str, *, blank: bool = False, **tests: Any) -> Table:
    """Keep the rows whose cell is not blank and passes all tests; with `blank=True` only the rows where it is blank.

    `over` and `under` leave the bound out, `least` and `most` include it; `equal` is one value, `among`
    one of several; `like` finds a part of a text in any case.

    >>> where([{"price": 5}, {"price": 9}, {"price": None}], "price", over=5)
    [{'price': 9}]
    """
    if blank:
        return [row for row in table if _is_blank(row.get(column))]
    checks = [(_TESTS[name], bound) for name, bound in tests.items()]
    rows = [row for row in table if not _is_blank(row.get(column))]
    return [row for row in rows if all(check(row[column], bound) for check, bound in checks)]


def column(table: Table, name: str, *, fill: Any = None) -> list[Any]:
    """Return the values of a column, without the blank ones or, if given, with `fill` in their position.

    >>> column([{"city": "Rome"}, {}], "city"), column([{"city": "Rome"}, {}], "city", fill="?")
    (['Rome'], ['Rome', '?'])
    """
    cells = [_cell(row, name) for row in table]
    return [fill if cell is None else cell for cell in cells if cell is not None or fill is not None]


def fill(table: Table, /, **values: Any) -> Table:
    """Replace the blank cells of the named columns.

    >>> fill([{"city": ""}, {"city": "Rome"}], city="unknown")
    [{'city': 'unknown'}, {'city': 'Rome'}]
    """
    return [row | {name: value for name, value in values.items() if _is_blank(row.get(name))} for row in table]


def order(table: Table, *columns: str) -> Table:
    """Sort by the columns, those with a leading "-" downwards; texts in any case, blank cells last in any direction.

    >>> column(order([{"n": 1}, {"n": None}, {"n": 3}], "-n"), "n", fill="blank")
    [3, 1, 'blank']
    """
    for name in reversed(columns):
        filled = sorted(where(table, name.lstrip("-")), key=_sort_key(name.lstrip("-")), reverse=name.startswith("-"))
        table = filled + where(table, name.lstrip("-"), blank=True)
    return list(table)


def top(table: Table, count: int, *, by: str) -> Table:
    """Return the rows with the `count` largest cells, largest first, and all rows that tie with the last of them.

    >>> column(top([{"n": 5}, {"n": 8}, {"n": 5}, {"n": 1}], 2, by="n"), "n")
    [8, 5, 5]
    """
    rows = order(where(table, by), f"-{by}")
    least = [row[by] for row in rows[:count]][-1:]  # the smallest cell that counts, none for a count of 0
    return [row for row in rows if least and row[by] >= least[0]]


def unique(table: Table, *, by: str, keep: str = "first") -> Table:
    """Keep the first row of each group, or with `keep="last"` its last one.

    >>> unique([{"id": 1, "v": "a"}, {"id": 1, "v": "b"}], by="id", keep="last")
    [{'id': 1, 'v': 'b'}]
    """
    return [rows[-1 if keep == "last" else 0] for rows in _group(table, by).values()]


def tally(table: Table, *, by: str) -> Table:
    """Count the rows of each group in a column `count`, the largest group first.

    >>> tally([{"city": "Oslo"}, {"city": "Rome"}, {"city": "Rome"}], by="city")
    [{'city': 'Rome', 'count': 2}, {'city': 'Oslo', 'count': 1}]
    """
    return order(_per_group(table, by, "count", len), "-count")


def total(table: Table, column: str, *, by: str | None = None) -> Any:
    """Add up a column: one number, or with `by` a table with the total of each group.

    >>> rows = [{"city": "Rome", "sum": 4}, {"city": "Oslo", "sum": 1}, {"city": "Rome", "sum": 2}]
    >>> total(rows, "sum"), total(rows, "sum", by="city")
    (7, [{'city': 'Rome', 'sum': 6}, {'city': 'Oslo', 'sum': 1}])
    """
    if by is None:
        return sum(_cells(table, column))
    return _per_group(table, by, column, lambda rows: sum(_cells(rows, column)))


def average(table: Table, column: str, *, by: str | None = None, digits: int = 1) -> Any:
    """Return the mean of a column, or with `by` a table with that of each group; None where there is no value.

    >>> average([{"n": 1}, {"n": 2}, {"n": None}], "n"), average([], "n")
    (1.5, None)
    """
    if by is None:
        return _mean(_cells(table, column), digits)
    return _per_group(table, by, column, lambda rows: _mean(_cells(rows, column), digits))


def lookup(table: Table, key: str, value: str) -> dict[Any, Any]:
    """Map the cells of one column to those of another; the first row with a key counts, rows with a blank do not.

    >>> lookup([{"id": 1, "name": "Ann"}, {"id": 1, "name": "Bob"}, {"id": 2}], "id", "name")
    {1: 'Ann'}
    """
    return {row[key]: row[value] for row in unique(where(table, value), by=key)}


def clip(text: str, width: int) -> str:
    """Shorten a text to at most `width` characters, at the end of a word where there is one, with ".." as its end.

    >>> clip("Replace the old pump", 14)
    'Replace the..'
    """
    if len(text) <= width:
        return text
    head = text[: width - 1].rpartition(" ")[0] if " " in text[: width - 1] else text[: width - 2]
    return head[: width - 2].rstrip() + ".."


def listing(items: Iterable[Any], word: str = "and") -> str:
    """Return the items as in a sentence, without blank ones; "none" if there are none.

    >>> listing(["tea", "milk", "rice"]), listing([])
    ('tea, milk and rice', 'none')
    """
    texts = [str(item) for item in items if not _is_blank(item)]
    return f" {word} ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts) or "none"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return the count with the noun in the right number; `many` is the plural where an "s" does not make it.

    >>> plural(1, "order"), plural(1200, "order"), plural(0, "box", "boxes")
    ('1 order', '1,200 orders', 'no boxes')
    """
    word = noun if count == 1 else many or f"{noun}s"
    return f"{count:,} {word}" if count else f"no {word}"


def money(cents: int, currency: str = "EUR") -> str:
    """Write cents as an amount; negative amounts are in parentheses.

    >>> money(125000), money(-300, "USD")
    ('1,250.00 EUR', '(3.00 USD)')
    """
    text = f"{abs(cents) // 100:,}.{abs(cents) % 100:02d} {currency}"
    return f"({text})" if cents < 0 else text


def split(cents: int, parts: int) -> list[int]:
    """Divide cents into equal parts without losing any; the first parts get what is left over.

    >>> split(100, 3)
    [34, 33, 33]
    """
    amount, more = divmod(cents, parts)
    return [amount + 1] * more + [amount] * (parts - more)


def percent(part: float, whole: float, *, digits: int = 0) -> str:
    """Write a part of a whole in percent; "-" where the whole is 0.

    >>> percent(1, 8), percent(1, 8, digits=1), percent(1, 0)
    ('13%', '12.5%', '-')
    """
    return f"{_round(Decimal(str(part)) * 100 / Decimal(str(whole)), digits)}%" if whole else "-"


def shift(day: str, *, days: int = 0, weeks: int = 0, months: int = 0) -> str:
    """Move a day, first by months, which end on the month's last day at the latest, then by weeks and days.

    >>> shift("2024-01-31", months=1), shift("2024-03-01", days=-1)
    ('2024-02-29', '2024-02-29')
    """
    start = date.fromisoformat(day)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    moved = date(year, month + 1, min(start.day, calendar.monthrange(year, month + 1)[1]))
    return (moved + timedelta(days=days, weeks=weeks)).isoformat()


def period(day: str, unit: str = "month") -> str:
    """Return the month of a day, or with `unit` its "week", "quarter" or "year".

    >>> period("2024-02-29"), period("2024-02-29", "week"), period("2024-02-29", "quarter")
    ('2024-02', '2024-W09', '2024-Q1')
    """
    if unit == "week":
        year, week, _ = date.fromisoformat(day).isocalendar()
        return f"{year}-W{week:02d}"
    if unit == "quarter":
        return f"{day[:4]}-Q{(int(day[5:7]) + 2) // 3}"
    return day[:4] if unit == "year" else day[:7]


def _is_blank(cell: Any) -> bool:
    return cell is None or cell == ""


def _cell(row: Row, name: str) -> Any:
    return None if _is_blank(row.get(name)) else row[name]


def _cells(table: Table, name: str) -> list[Any]:
    return [row[name] for row in where(table, name)]


def _group(table: Table, by: str) -> dict[Any, Table]:
    """Return the rows of each group under its value."""
    groups: dict[Any, Table] = {}
    for row in where(table, by):
        groups.setdefault(row[by], []).append(row)
    return groups


def _per_group(table: Table, by: str, column: str, summarize: Callable[[Table], Any]) -> Table:
    """Return a row for each group with its key and `summarize` of its rows."""
    return [{by: key, column: summarize(rows)} for key, rows in _group(table, by).items()]


def _sort_key(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name].casefold() if isinstance(row[name], str) else row[name]


def _mean(values: Sequence[float], digits: int) -> float | None:
    return _round(sum(Decimal(str(value)) for value in values) / len(values), digits) if values else None


def _round(value: Any, digits: int = 0) -> Any:
    """Round halves away from zero, to a whole number or to a float with `digits` decimals."""
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return float(rounded) if digits else int(rounded)
