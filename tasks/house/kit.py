"""kit: a team's small library for tables, texts, money, dates and spans of time.

Conventions that hold everywhere:

- A table is a list of rows, a row is a dict. Nothing that is passed in is changed.
- A cell is blank if it is missing, None or "". Tests, keys, totals and sorting pass over blank cells.
- `by=` names the column, or the list of columns, whose values identify a group; a row with a blank one is in no group.
- `into=` names the new column. Groups, and whatever is made of them, are in the order of their first row.
- Money is a whole number of cents. Halves are rounded away from zero.
- A day is a text such as "2024-03-01". Ranges of days include both ends.
- A span is a pair (start, end) of minutes; its end is not part of it.
"""

import calendar
import operator
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import accumulate
from typing import Any

Row = dict[str, Any]
Table = list[Row]
Span = tuple[int, int]

_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "equal": operator.eq,
    "unequal": operator.ne,
    "over": operator.gt,
    "under": operator.lt,
    "least": operator.ge,
    "most": operator.le,
    "among": lambda cell, values: cell in values,
    "like": lambda cell, text: text.casefold() in str(cell).casefold(),
}


def where(table: Table, column: str, *, blank: bool = False, **tests: Any) -> Table:
    """Keep the rows whose cell is not blank and passes all tests; with `blank=True` only the rows where it is blank.

    `over` and `under` leave the bound out, `least` and `most` include it; `equal`, `unequal`; `among` takes several
    values; `like` finds a part of a text in any case.

    >>> where([{"price": 5}, {"price": 9}, {"price": None}], "price", over=5)
    [{'price': 9}]
    """
    if blank:
        return [row for row in table if _is_blank(row.get(column))]
    checks = [(_TESTS[name], bound) for name, bound in tests.items()]
    rows = [row for row in table if not _is_blank(row.get(column))]
    return [row for row in rows if all(check(row[column], bound) for check, bound in checks)]


def pick(table: Table, *columns: str) -> Table:
    """Keep these columns alone, in this order; blank cells become None.

    >>> pick([{"id": 1, "city": "Rome", "note": ""}], "city", "note")
    [{'city': 'Rome', 'note': None}]
    """
    return [{name: _cell(row, name) for name in columns} for row in table]


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


def derive(table: Table, *columns: str, into: str, using: Callable[..., Any]) -> Table:
    """Add a column: `using` gets the cells of `columns`; where one of them is blank the new cell is None.

    >>> derive([{"price": 3, "count": 2}, {"price": 3}], "price", "count", into="cost", using=operator.mul)
    [{'price': 3, 'count': 2, 'cost': 6}, {'price': 3, 'cost': None}]
    """
    derived = []
    for row in table:
        cells = [_cell(row, name) for name in columns]
        derived.append({**row, into: None if None in cells else using(*cells)})
    return derived


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


def unique(table: Table, *, by: str | Sequence[str], keep: str = "first") -> Table:
    """Keep the first row of each group, or with `keep="last"` its last one.

    >>> unique([{"id": 1, "v": "a"}, {"id": 1, "v": "b"}], by="id", keep="last")
    [{'id': 1, 'v': 'b'}]
    """
    return [rows[-1 if keep == "last" else 0] for rows in group(table, by=by).values()]


def group(table: Table, *, by: str | Sequence[str]) -> dict[Any, Table]:
    """Return the rows of each group under its value, or under a tuple of values where `by` is a list.

    >>> group([{"city": "Rome", "id": 1}, {"city": "", "id": 2}], by="city")
    {'Rome': [{'city': 'Rome', 'id': 1}]}
    """
    groups: dict[Any, Table] = {}
    for row in table:
        key = tuple(_cell(row, name) for name in _names(by))
        if None not in key:
            groups.setdefault(key[0] if isinstance(by, str) else key, []).append(row)
    return groups


def tally(table: Table, *, by: str | Sequence[str]) -> Table:
    """Count the rows of each group in a column `count`, the largest group first.

    >>> tally([{"city": "Oslo"}, {"city": "Rome"}, {"city": "Rome"}], by="city")
    [{'city': 'Rome', 'count': 2}, {'city': 'Oslo', 'count': 1}]
    """
    return order(_per_group(table, by, "count", len), "-count")


def total(table: Table, column: str, *, by: str | Sequence[str] | None = None) -> Any:
    """Add up a column: one number, or with `by` a table with the total of each group.

    >>> rows = [{"city": "Rome", "sum": 4}, {"city": "Oslo", "sum": 1}, {"city": "Rome", "sum": 2}]
    >>> total(rows, "sum"), total(rows, "sum", by="city")
    (7, [{'city': 'Rome', 'sum': 6}, {'city': 'Oslo', 'sum': 1}])
    """
    if by is None:
        return sum(_cells(table, column))
    return _per_group(table, by, column, lambda rows: sum(_cells(rows, column)))


def average(table: Table, column: str, *, by: str | Sequence[str] | None = None, digits: int = 1) -> Any:
    """Return the mean of a column, or with `by` a table with that of each group; None where there is no value.

    >>> average([{"n": 1}, {"n": 2}, {"n": None}], "n"), average([], "n")
    (1.5, None)
    """
    if by is None:
        return _mean(_cells(table, column), digits)
    return _per_group(table, by, column, lambda rows: _mean(_cells(rows, column), digits))


def shares(table: Table, column: str, *, by: str | Sequence[str]) -> Table:
    """Return in a column `share` each group's part of the total in whole percent; the shares add up to 100.

    >>> shares([{"team": "a", "n": 1}, {"team": "b", "n": 1}, {"team": "c", "n": 1}], "n", by="team")
    [{'team': 'a', 'share': 34}, {'team': 'b', 'share': 33}, {'team': 'c', 'share': 33}]
    """
    totals = total(table, column, by=by)
    percents = split(100, [row[column] for row in totals])
    return [
        {**{name: row[name] for name in _names(by)}, "share": percent}
        for row, percent in zip(totals, percents, strict=True)
    ]


def pivot(table: Table, column: str, *, by: str, across: str) -> Table:
    """Return a row for each value of `by` with the total of `column` for each value of `across`, 0 where it has none.

    >>> pivot([{"who": "Al", "day": "Mon", "h": 3}, {"who": "Bo", "day": "Tue", "h": 4}], "h", by="who", across="day")
    [{'who': 'Al', 'Mon': 3, 'Tue': 0}, {'who': 'Bo', 'Mon': 0, 'Tue': 4}]
    """
    headings = group(table, by=across)
    return [
        {by: value} | {heading: total(where(rows, across, equal=heading), column) for heading in headings}
        for value, rows in group(table, by=by).items()
    ]


def running(table: Table, column: str, *, into: str = "running") -> Table:
    """Add a column with the total of `column` up to and including each row.

    >>> running([{"n": 2}, {"n": None}, {"n": 3}], "n", into="sum")
    [{'n': 2, 'sum': 2}, {'n': None, 'sum': 2}, {'n': 3, 'sum': 5}]
    """
    sums = accumulate(_cell(row, column) or 0 for row in table)
    return [{**row, into: so_far} for row, so_far in zip(table, sums, strict=True)]


def join(table: Table, other: Table, *, on: str | tuple[str, str], keep: str = "all") -> Table:
    """Add to each row the columns of the first row of `other` with the same key; the row's own cells win.

    `on` is the key's column, or a pair of its name here and its name in `other`. Rows without a match get None, or are
    left out with `keep="matched"`.

    >>> join([{"id": 1, "who": 7}, {"id": 2}], [{"no": 7, "name": "Ann"}], on=("who", "no"))
    [{'name': 'Ann', 'id': 1, 'who': 7}, {'name': None, 'id': 2}]
    """
    mine, theirs = _pair(on)
    matches = {row[theirs]: row for row in unique(other, by=theirs)}
    missing = dict.fromkeys([name for row in other for name in row if name != theirs])
    joined = []
    for row in table:
        match = matches.get(_cell(row, mine), {})
        if match or keep == "all":
            own = {name: cell for name, cell in row.items() if not (name in missing and _is_blank(cell))}
            joined.append(missing | {name: cell for name, cell in match.items() if name != theirs} | own)
    return joined


def unmatched(table: Table, other: Table, *, on: str | tuple[str, str]) -> Table:
    """Return the rows whose key is in no row of `other`, those with a blank key among them.

    >>> unmatched([{"id": 1}, {"id": 2}], [{"id": 2}], on="id")
    [{'id': 1}]
    """
    mine, theirs = _pair(on)
    known = group(other, by=theirs)
    return [row for row in table if _cell(row, mine) not in known]


def lookup(table: Table, key: str, value: str) -> dict[Any, Any]:
    """Map the cells of one column to those of another; the first row with a key counts, rows with a blank do not.

    >>> lookup([{"id": 1, "name": "Ann"}, {"id": 1, "name": "Bob"}, {"id": 2}], "id", "name")
    {1: 'Ann'}
    """
    return {row[key]: row[value] for row in unique(where(table, value), by=key)}


def slug(text: str) -> str:
    """Return the words in lower case without accents, joined by "-", for file names and addresses.

    >>> slug("Crème brûlée & Co.")
    'creme-brulee-co'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "-".join(re.findall(r"[a-z0-9]+", plain.lower()))


def clip(text: str, width: int) -> str:
    """Shorten a text to at most `width` characters, at the end of a word where there is one, with ".." as its end.

    >>> clip("Replace the old pump", 14)
    'Replace the..'
    """
    if len(text) <= width:
        return text
    head = text[: width - 1].rpartition(" ")[0] if " " in text[: width - 1] else text[: width - 2]
    return head[: width - 2].rstrip() + ".."


def code(prefix: str, number: int, *, digits: int = 4) -> str:
    """Return a number with its prefix, as in the names of our documents.

    >>> code("inv", 42)
    'INV-0042'
    """
    return f"{prefix.upper()}-{number:0{digits}d}"


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


def lines(table: Table, pattern: str) -> list[str]:
    """Return a text for each row: the pattern with the row's cells in its braces, "-" for blank ones.

    >>> lines([{"id": 1, "city": "Rome"}, {"id": 2}], "{id}: {city}")
    ['1: Rome', '2: -']
    """
    return [pattern.format_map(_Cells({k: v for k, v in row.items() if not _is_blank(v)})) for row in table]


def cents(text: str | None) -> int:
    """Read an amount such as "1,250.00", "12.5 EUR" or "(3.00 EUR)", which is negative; blank texts are 0.

    >>> cents("1,250.00"), cents("(3.00 EUR)"), cents("")
    (125000, -300, 0)
    """
    digits = re.sub(r"[^\d.-]", "", text or "") or "0"
    return _round(Decimal(digits) * (-100 if "(" in (text or "") else 100))


def money(cents: int, currency: str = "EUR") -> str:
    """Write cents as an amount; negative amounts are in parentheses.

    >>> money(125000), money(-300, "USD")
    ('1,250.00 EUR', '(3.00 USD)')
    """
    text = f"{abs(cents) // 100:,}.{abs(cents) % 100:02d} {currency}"
    return f"({text})" if cents < 0 else text


def split(cents: int, parts: int | Sequence[int]) -> list[int]:
    """Divide cents into equal parts, or by a list of weights, without losing any.

    Cents that are left over go to the parts that lost most by rounding down, of equal ones to the first.

    >>> split(100, 3), split(1000, [2, 1])
    ([34, 33, 33], [667, 333])
    """
    weights = [1] * parts if isinstance(parts, int) else list(parts)
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    amounts = [cents * weight // whole for weight in weights]
    first = sorted(range(len(weights)), key=lambda at: -(cents * weights[at] % whole))
    for at in first[: cents - sum(amounts)]:
        amounts[at] += 1
    return amounts


def adjust(cents: int, percent: float) -> int:
    """Raise cents by a percentage, or lower them by a negative one.

    >>> adjust(1000, 19), adjust(999, -10)
    (1190, 899)
    """
    return _round(cents * (100 + Decimal(str(percent))) / 100)


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


def days(first: str, last: str) -> list[str]:
    """Return all days from the first to the last.

    >>> days("2024-02-28", "2024-03-01")
    ['2024-02-28', '2024-02-29', '2024-03-01']
    """
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    return [(start + timedelta(days=at)).isoformat() for at in range((end - start).days + 1)]


def workdays(first: str, last: str, *, free: Collection[str] = ()) -> list[str]:
    """Return the days from Monday to Friday from the first day to the last, without the `free` ones.

    >>> workdays("2024-03-01", "2024-03-05", free=["2024-03-04"])
    ['2024-03-01', '2024-03-05']
    """
    return [day for day in days(first, last) if date.fromisoformat(day).weekday() < 5 and day not in free]


def merge(spans: Iterable[Span]) -> list[Span]:
    """Join the spans that overlap or touch, in order of time; empty spans are left out.

    >>> merge([(60, 90), (30, 60), (100, 100)])
    [(30, 90)]
    """
    merged: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def gaps(spans: Iterable[Span], start: int, end: int) -> list[Span]:
    """Return the spans between `start` and `end` that no span covers.

    >>> gaps([(540, 600), (660, 700)], 480, 720)
    [(480, 540), (600, 660), (700, 720)]
    """
    free = []
    for busy_start, busy_end in merge(spans):
        if start < min(busy_start, end):
            free.append((start, min(busy_start, end)))
        start = max(start, busy_end)
    return [*free, (start, end)] if start < end else free


def clock(minutes: int) -> str:
    """Write minutes as hours and minutes.

    >>> clock(545), clock(1500)
    ('9h05', '25h00')
    """
    return f"{'-' if minutes < 0 else ''}{abs(minutes) // 60}h{abs(minutes) % 60:02d}"


class _Cells(dict[str, Any]):
    """The cells of a row for a pattern, "-" for those that it does not have."""

    def __missing__(self, name: str) -> str:
        return "-"


def _is_blank(cell: Any) -> bool:
    return cell is None or cell == ""


def _cell(row: Row, name: str) -> Any:
    return None if _is_blank(row.get(name)) else row[name]


def _cells(table: Table, name: str) -> list[Any]:
    return [row[name] for row in where(table, name)]


def _names(by: str | Sequence[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _pair(on: str | tuple[str, str]) -> tuple[str, str]:
    return (on, on) if isinstance(on, str) else on


def _per_group(table: Table, by: str | Sequence[str], column: str, summarize: Callable[[Table], Any]) -> Table:
    """Return a row for each group with its key and `summarize` of its rows."""
    names, groups = _names(by), group(table, by=_names(by))
    return [{**dict(zip(names, key, strict=True)), column: summarize(rows)} for key, rows in groups.items()]


def _sort_key(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name].casefold() if isinstance(row[name], str) else row[name]


def _mean(values: Sequence[float], digits: int) -> float | None:
    return _round(sum(Decimal(str(value)) for value in values) / len(values), digits) if values else None


def _round(value: Any, digits: int = 0) -> Any:
    """Round halves away from zero, to a whole number or to a float with `digits` decimals."""
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return float(rounded) if digits else int(rounded)
