"""Scoring and filtering shards: each record judged by itself, so that the same records are kept however they are
split into shards.

M1 of Brain Rot (arXiv 2510.13928 v2, section 2): junk is short and popular, control long and not. M2 is a score of
quality, by a classifier (`jaxllm.curation.quality`). A filter drops junk, or keeps control alone.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from jaxllm.config import ConfigError, check, to_dict
from jaxllm.curation.blocks import Block, Fields, count_words, open_parquet, read_blocks, shards
from jaxllm.files import aside, read_json, write_json

SHOWN = 20  # malformed records that a report names, of each shard
EXAMPLES = 3  # removed texts that a report shows, of each reason and shard


@dataclasses.dataclass(frozen=True)
class M1Config:
    """Length and popularity.

    Attributes:
      short: junk has fewer words (or tokens) than this.
      popular: and more popularity than this.
      long: control has more words than this.
      unpopular: and at most this popularity.
    """

    short: int = 30
    popular: float = 500
    long: int = 100
    unpopular: float = 0

    def __post_init__(self) -> None:
        check(self.short <= self.long, "long", self.long, f"at least short={self.short}")


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """What is kept.

    Attributes:
      fields: of a record.
      m1: bounds; null leaves length and popularity out.
      use: `both`: junk is short and popular, as in the paper; `length` and `popularity`: by one of them alone.
      unit: of length; `tokens` needs `tokenizer`.
      tokenizer: directory or tokenizer.json.
      quality: file of a classifier; records that score below `least_quality` are junk too.
      least_quality: probability of high quality.
      keep: `rest` drops junk; `control` keeps control alone.
      removed: write removed records too, in `removed/`.
    """

    fields: Fields = Fields()
    m1: M1Config | None = M1Config()
    use: Literal["both", "length", "popularity"] = "both"
    unit: Literal["words", "tokens"] = "words"
    tokenizer: str | None = None
    quality: str | None = None
    least_quality: float = 0.5
    keep: Literal["rest", "control"] = "rest"
    removed: bool = False

    def __post_init__(self) -> None:
        check(
            self.unit == "words" or self.tokenizer is not None, "tokenizer", self.tokenizer, "needed with unit=tokens"
        )
        check(self.m1 is not None or self.quality is not None, "m1", self.m1, "needed without a `quality` file")
        check(0 <= self.least_quality <= 1, "least_quality", self.least_quality, "a probability")
        check(self.use == "length" or self.m1 is None or len(self.fields.popularity) > 0, "fields.popularity",
              self.fields.popularity, "name its fields, or use=length")
        check(self.keep == "rest" or self.m1 is not None, "keep", self.keep, "control is told by m1")


class Judge:
    """Reasons to remove records, by block. One for all shards of a run."""

    def __init__(self, config: FilterConfig) -> None:
        """Open tokenizer and classifier."""
        self.config = config
        self._tokenizer: Any = None
        if config.unit == "tokens":
            from jaxllm.data import load_tokenizer

            self._tokenizer = load_tokenizer(str(config.tokenizer))
        self._quality: Any = None
        if config.quality is not None:
            from jaxllm.curation.quality import QualityModel

            self._quality = QualityModel.load(config.quality)

    def lengths(self, texts: pa.Array) -> np.ndarray:
        """Words or tokens of each text."""
        if self._tokenizer is None:
            return count_words(texts)
        return np.array(
            [len(e.ids) for e in self._tokenizer.encode_batch(texts.to_pylist(), add_special_tokens=False)], np.int64
        )

    def qualities(self, texts: pa.Array) -> np.ndarray | None:
        """Probability of high quality, if there is a classifier."""
        return None if self._quality is None else self._quality.probabilities(texts.to_pylist())

    def reasons(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Reason of each record, 0 to keep it, into `REASONS`; lengths; qualities."""
        c = self.config
        lengths = self.lengths(block.texts) if c.m1 is not None else np.zeros(len(block.lines), np.int64)
        reason = np.zeros(len(block.lines), np.int8)
        quality = self.qualities(block.texts)
        if quality is not None:
            reason[quality < c.least_quality] = 2
        if c.m1 is not None:
            short, popular = lengths < c.m1.short, block.popularity > c.m1.popular
            reason[{"both": short & popular, "length": short, "popularity": popular}[c.use]] = 1
            if c.keep == "control":
                long, unpopular = lengths > c.m1.long, block.popularity <= c.m1.unpopular
                control = {"both": long & unpopular, "length": long, "popularity": unpopular}[c.use]
                reason[(reason == 0) & ~control] = 3
        return reason, lengths, quality


REASONS = ("kept", "junk by length and popularity", "low quality", "no control")


def filter_shards(paths: Sequence[str | Path], out: str | Path, config: FilterConfig,
                  say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write what is kept of each shard to a file of the same name in `out`, and `report.json`.

    A shard is written aside and takes its place when whole; one that is there and was made from the same file by the
    same config is not made again. Kept lines are the bytes that stood in the shard.

    Args:
      paths: shards, or directories of them.
      out: another directory than theirs.
      config: what is kept.
      say: told of each shard.

    Returns:
      The report: totals and `shards`, each with `records`, `kept`, `removed` by reason, `malformed`, and the first of
        them by line.

    Raises:
      ConfigError: no shards, or `out` is where they lie.
    """
    out = Path(out)
    found = shards(paths)
    if any(out.resolve() == p.parent.resolve() for p in found):
        raise ConfigError(f"{out}: the shards lie there; what is kept needs another directory")
    (out / "reports").mkdir(parents=True, exist_ok=True)
    judge: Judge | None = None
    reports = []
    settings = json.loads(json.dumps(to_dict(config)))
    for path in found:
        stat = path.stat()
        about = {"source": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "config": settings}
        note = out / "reports" / f"{path.name}.json"
        if note.exists() and (out / path.name).exists() and (old := read_json(note))["about"] == about:
            reports.append(old)
            continue
        note.unlink(missing_ok=True)
        judge = judge or Judge(config)
        report = _filter_one(path, out, judge) | {"about": about}
        write_json(note, report)
        reports.append(report)
        say(f"{path.name}: {report['kept']:,} of {report['records']:,} records kept, {report['malformed']:,} "
            f"malformed, {report['MB/s']} MB/s")
    whole = _summed(reports) | {
        "config": settings,
        "shards": {Path(r["about"]["source"]).name: {k: v for k, v in r.items() if k != "about"} for r in reports},
    }
    write_json(out / "report.json", whole)
    return whole


def _summed(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    removed: collections.Counter[str] = collections.Counter()
    for r in reports:
        removed.update(r["removed"])
    return {
        name: sum(r[name] for r in reports) for name in ("records", "kept", "malformed", "words_kept", "words", "bytes")
    } | {"removed": dict(removed), "seconds": round(sum(r["seconds"] for r in reports), 3)}


def _filter_one(path: Path, out: Path, judge: Judge) -> dict[str, Any]:
    began = time.perf_counter()
    removed: collections.Counter[str] = collections.Counter()
    problems: list[str] = []
    examples: dict[str, list[dict[str, Any]]] = {}
    records = kept = malformed = words = words_kept = size = 0
    with _Writer(out / path.name, path) as keep, \
            _Writer(out / "removed" / path.name if judge.config.removed else None, path) as drop:
        for block in read_blocks(path, judge.config.fields):
            reason, lengths, quality = judge.reasons(block)
            stays = reason == 0
            keep.write(block, stays)
            drop.write(block, ~stays)
            records += len(stays) + len(block.problems)
            kept += int(stays.sum())
            malformed += len(block.problems)
            words += int(lengths.sum())
            words_kept += int(lengths[stays].sum())
            size += block.bytes
            problems += [f"line {p.line}: {p.why}" for p in block.problems[:SHOWN - len(problems)]]
            for code, count in zip(*np.unique(reason[~stays], return_counts=True), strict=True):
                name = REASONS[code]
                removed[name] += int(count)
                shown = examples.setdefault(name, [])
                for i in np.flatnonzero(reason == code)[:EXAMPLES - len(shown)]:
                    shown.append({"line": int(block.lines[i]), "words": int(lengths[i]),
                                  "popularity": float(block.popularity[i]),
                                  "text": block.texts[int(i)].as_py()[:200]})
                    if quality is not None:
                        shown[-1]["quality"] = round(float(quality[i]), 4)
    seconds = time.perf_counter() - began
    return {"records": records, "kept": kept, "removed": dict(removed), "malformed": malformed, "problems": problems,
            "examples": examples, "words": words, "words_kept": words_kept, "bytes": size, "seconds": round(seconds, 4),
            "MB/s": round(size / 1e6 / seconds)}


class _Writer:
    """Writes chosen records as they came; the file takes its place when the `with` ends without an error."""

    def __init__(self, path: Path | None, source: Path) -> None:
        self._path, self._source, self._file, self._parquet = path, source, None, None

    def __enter__(self) -> _Writer:
        if self._path is not None:
            schema = open_parquet(self._source).schema_arrow if self._path.suffix == ".parquet" else None
            self._aside = aside(self._path)
            self._temporary = self._aside.__enter__()
            if schema is None:
                self._file = self._temporary.open("wb")
            else:
                self._parquet = pyarrow.parquet.ParquetWriter(self._temporary, schema)
        return self

    def write(self, block: Block, chosen: np.ndarray) -> None:
        """Records of a block by a mask."""
        if self._path is None:
            return
        if isinstance(block.source, pa.Table):
            assert self._parquet is not None
            table: Any = block.source
            self._parquet.write_table(table.take(pa.array(block.spans[chosen][:, 0])))
            return
        assert self._file is not None
        source = memoryview(block.source)
        spans = block.spans[chosen]
        if not len(spans):
            return
        # Neighbours that are all kept go out in one piece.
        starts, ends = spans[:, 0], spans[:, 1] + 1
        breaks = np.flatnonzero(starts[1:] != ends[:-1])
        firsts, lasts = starts[np.concatenate([[0], breaks + 1])], ends[np.concatenate([breaks, [len(ends) - 1]])]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            self._file.write(source[first:last])
        if ends[-1] > len(source):  # the file's last line had no end
            self._file.write(b"\n")

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._path is None:
            return
        if self._file is not None:
            self._file.close()
        if self._parquet is not None:
            self._parquet.close()
        self._aside.__exit__(kind, error, trace)


def score_shards(paths: Sequence[str | Path], out: str | Path, config: FilterConfig,
                 say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write `NAME.scores.parquet` for each shard, a row for each good record: line, length, popularity, quality;
    their quantiles.

    Args:
      paths: shards, or directories of them.
      out: directory.
      config: fields, unit, classifier.
      say: told of each shard.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    judge = Judge(config)
    columns: dict[str, list[np.ndarray]] = {"length": [], "popularity": [], "quality": []}
    malformed = 0
    for path in shards(paths):
        rows: dict[str, list[np.ndarray]] = {"line": [], "length": [], "popularity": [], "quality": []}
        for block in read_blocks(path, config.fields):
            quality = judge.qualities(block.texts)
            rows["line"].append(block.lines)
            rows["length"].append(judge.lengths(block.texts))
            rows["popularity"].append(block.popularity)
            rows["quality"].append(np.full(len(block.lines), np.nan) if quality is None else quality)
            malformed += len(block.problems)
        table = {name: np.concatenate(values) if values else np.zeros(0) for name, values in rows.items()}
        with aside(out / f"{path.name}.scores.parquet") as temporary:
            pyarrow.parquet.write_table(pa.table(table), temporary)
        for name, values in columns.items():
            values.append(table[name])
        say(f"{path.name}: {len(table['line']):,} records")
    at = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.97, 0.99)
    whole = {name: np.concatenate(values) for name, values in columns.items()}
    report: dict[str, Any] = {"records": len(whole["length"]), "malformed": malformed, "quantiles": {
        name: dict(zip(map(str, at), np.quantile(v, at).tolist(), strict=True)) for name, v in whole.items()
        if len(v) and not np.isnan(v).all()}}
    if len(whole["length"]) > 1 and np.ptp(whole["length"]) and np.ptp(whole["popularity"]):
        report["correlation of length and popularity"] = float(np.corrcoef(whole["length"], whole["popularity"])[0, 1])
    write_json(out / "scores.json", report)
    return report
