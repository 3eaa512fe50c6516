"""Hostile input to the sentence rule and to the loaders of artifacts: nothing may crash or hang.

A failure is an error that is not a `HowwhenError`, a call that takes longer than a deadline, a text
of which something is lost, or an artifact that loads and then cannot be used.
"""

import gzip
import json
import os
import random
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.timing import Result
from howwhen.collect.sentences import cut_sentences, sentence_spans, thinking_part
from howwhen.collect.traces import read_traces
from howwhen.errors import HowwhenError
from howwhen.formats.published import read_titles
from howwhen.formats.saelens import CONFIG, WEIGHTS, export_saelens, read_saelens
from howwhen.formats.safetensors import load_taxonomy, load_vectors, save_taxonomy, save_vectors
from howwhen.lm.prompts import THINK_TAGS, ThinkTags
from howwhen.pipeline.store import StepFolder
from howwhen.probes import Clusters, Sae, Taxonomy
from howwhen.records import Finish, Rollout, SentenceSpan
from howwhen.vectors import LinearCoefficient, LowRank, Network, VectorSet

INPUTS = 100_000
DEADLINE_SECONDS = 5.0
TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"
"""Real answers, kept next to the checkout. Without them, the fuzzer uses made-up texts only."""


@dataclass
class Outcome:
    """What became of the inputs."""

    inputs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """One line for each input that failed, with the kind, its number and the error."""

    def result(self, name: str) -> Result:
        """Failures, against none."""
        shown = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        first = f"; the first: {self.failures[0]}" if self.failures else ""
        detail = f"at most 0; {self.inputs} inputs: {shown}{first}"
        return Result(name, len(self.failures), 0, not self.failures, detail)


def results() -> Iterator[Result]:
    """Both fuzzers."""
    yield fuzz_splitter(INPUTS).result("hostile texts that the sentence rule fails on")
    yield fuzz_files(INPUTS).result("damaged artifacts that the loaders fail on")


def attempt(outcome: Outcome, kind: str, check: Callable[[], str]) -> None:
    """Run one check under the deadline and note what became of it."""
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_SECONDS)
    try:
        outcome.kinds[check()] += 1
    except Exception as error:  # noqa: BLE001  any error is a failure that this looks for
        outcome.failures.append(f"{kind}, input {outcome.inputs}: {error!r}"[:300])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    outcome.inputs += 1


def _late(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"longer than {DEADLINE_SECONDS} s")


def fuzz_splitter(inputs: int, seed: int = 0) -> Outcome:
    """Random texts, mutations of real answers and pathological repeats, cut into sentences."""
    signal.signal(signal.SIGALRM, _late)
    rng, outcome, real = random.Random(f"texts-{seed}"), Outcome(), _real_texts()
    makers: list[Callable[[random.Random], str]] = [_random_text, _repeats]
    makers += [partial(_mutated, texts=real)] * 2 if real else []
    for _ in range(inputs):
        text = rng.choice(makers)(rng)
        think_tags = rng.choice(MARKERS)
        ends = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(20)))
        attempt(outcome, repr(text[:40]), lambda: _check_text(text, [*ends, len(text)], think_tags))  # noqa: B023
    return outcome


MARKS = [*".!?;", "...", "?!", '."', "\n", "\r\n", " ", "\t", "\u2028", "\x85", "\x00", "e.g."]
PIECES = [*MARKS, "3.14", "U.S.", "5!", "x! ", "A", "e\u0301", "\u202e", "😀", "\ufffd", "</think>"]
MARKERS: list[ThinkTags] = [THINK_TAGS, THINK_TAGS, ("[", "]"), ("||", "||"), ("\n", ". ")]


def _random_text(rng: random.Random) -> str:
    limit = rng.choice([0x80, 0x3000, 0xD800, 0x110000])
    code = (rng.randrange(limit) for _ in range(rng.randrange(120)))
    return "".join(chr(point) if rng.random() < 0.7 else rng.choice(PIECES) for point in code)


def _repeats(rng: random.Random) -> str:
    """A few pieces over and over; one in a hundred is long enough to show what is not linear."""
    piece = "".join(rng.choices(PIECES, k=rng.randrange(1, 5)))
    return piece * (rng.randrange(20_000) if rng.random() < 0.01 else rng.randrange(60))


def _mutated(rng: random.Random, texts: list[str]) -> str:
    text = rng.choice(texts)
    start = rng.randrange(len(text) + 1)
    characters = list(text[start : start + rng.randrange(600)])
    for _ in range(rng.randrange(12)):
        at = rng.randrange(len(characters) + 1)
        characters[at : at + rng.randrange(3)] = [rng.choice(PIECES)]
    return "".join(characters)


def _check_text(text: str, ends: list[int], think_tags: ThinkTags) -> str:
    sentences = cut_sentences(text)
    if "".join(text[start:end] for start, end in sentences) != text:
        raise AssertionError("the sentences do not tile the text")
    spans = sentence_spans(text, ends, think_tags)
    start, end = thinking_part(text, think_tags)
    covered = "".join(text[span.start_char : span.end_char] for span in spans)
    if spans and covered != text[start:end]:
        raise AssertionError("the spans do not tile the thinking part")
    if any(first.end_token != second.start_token for first, second in pairwise(spans)):
        raise AssertionError("the spans do not tile the tokens")
    return "with spans" if spans else "without spans"


def _real_texts() -> list[str]:
    files = sorted(TRACES.rglob("*.jsonl.gz"))
    rows = (line for file in files for line in gzip.decompress(file.read_bytes()).splitlines())
    return [json.loads(row)["text"] for row in rows]


def fuzz_files(inputs: int, seed: int = 0) -> Outcome:
    """Damaged taxonomies, vector sets and records, loaded and (where that succeeds) used."""
    signal.signal(signal.SIGALRM, _late)
    rng, outcome = random.Random(f"files-{seed}"), Outcome()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        originals = _originals(folder)
        for _ in range(inputs):
            original, load = rng.choice(originals)
            damage = rng.choice(_DAMAGES.get(load, _TENSOR_DAMAGES))
            (folder / "damaged").write_bytes(damage(rng, original))
            kind = f"{damage.__name__} for {load.__name__}"
            attempt(outcome, kind, lambda: _check_file(load, folder / "damaged"))  # noqa: B023
    return outcome


Load = Callable[[Path], object]
Damage = Callable[[random.Random, bytes], bytes]


def _check_file(load: Load, path: Path) -> str:
    try:
        load(path)
    except HowwhenError as error:
        if len(str(error)) > 2000:
            raise AssertionError(f"a message of {len(str(error))} characters") from error
        return f"refused by {load.__name__.strip('_')}"
    return f"usable after {load.__name__.strip('_')}"


def _use_taxonomy(path: Path) -> object:
    taxonomy = load_taxonomy(path)
    return taxonomy.gate().categorise(torch.zeros(2, taxonomy.mean.shape[0]))


def _use_vectors(path: Path) -> object:
    vectors = load_vectors(path)
    size, width = vectors.vectors.shape
    if not size:
        return None
    return vectors.delta(torch.ones(2, width), torch.tensor([0, size - 1]))


def _read_records(path: Path) -> object:
    return StepFolder(path.parent, "collect").read_records(path.name, Rollout)


def _read_traces(path: Path) -> object:
    return read_traces([path])


def _read_config(path: Path) -> object:
    """A SAELens folder whose config is this file."""
    folder = path.parent / "config"
    (folder / CONFIG).write_bytes(path.read_bytes())
    return read_saelens(folder)


def _read_weights(path: Path) -> object:
    """A SAELens folder whose weights are this file."""
    folder = path.parent / "weights"
    (folder / WEIGHTS).write_bytes(path.read_bytes())
    taxonomy = read_saelens(folder)
    return taxonomy.categorise(torch.zeros(2, taxonomy.mean.shape[0]))


def _originals(folder: Path) -> list[tuple[bytes, Load]]:
    """Undamaged artifacts of every kind, with the functions that read them."""
    rows = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    scorers = (Sae(rows, torch.zeros(3), rows, torch.zeros(4), 1), Clusters(rows, rows[:, 0], "x"))
    originals: list[tuple[bytes, Load]] = []
    for scorer in scorers:
        save_taxonomy(folder / "t", Taxonomy("m", 1, torch.zeros(4), scorer, ("a", "b", "c")))
        originals.append(((folder / "t").read_bytes(), _use_taxonomy))
    forms = (
        None,
        Network(torch.randn(2, 4), torch.ones(2), torch.randn(3, 2), torch.zeros(3)),
        LinearCoefficient(rows, torch.zeros(3)),
        LowRank(torch.randn(3, 2, 4), torch.randn(3, 2, 4)),
    )
    for form in forms:
        save_vectors(folder / "v", VectorSet("m", 1, rows, modulation=form, bias=torch.ones(4)))
        originals.append(((folder / "v").read_bytes(), _use_vectors))
    spans = (SentenceSpan(0, 2, 0, 1), SentenceSpan(2, 4, 1, 3))
    rollout = Rollout("a", (1, 2, 3), "A. é", Finish.STOP, spans)
    line = TypeAdapter(Rollout).dump_json(rollout) + b"\n"
    originals.append((line * 3, _read_records))
    return [*originals, *_foreign_originals(folder)]


def _foreign_originals(folder: Path) -> list[tuple[bytes, Load]]:
    """The same for the formats of other tools."""
    row = {"question": "2 + 2?", "text": "<think>4.</think>4", "id": "a", "finish": "stop"}
    lines = b"".join(json.dumps({**row, "id": name}).encode() + b"\n" for name in "abc")
    rows = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    sae = Sae(rows, torch.zeros(3), rows, torch.zeros(4), 1)
    taxonomy = Taxonomy("m", 1, torch.zeros(4), sae, ("a", "b", "c"))
    for name in ("config", "weights"):
        export_saelens(folder / name, taxonomy)
    config = json.dumps(json.loads((folder / "config" / CONFIG).read_bytes())).encode()
    return [
        (lines, _read_traces),
        (json.dumps({"final_titles": ["a", "b"]}).encode(), read_titles),
        (config, _read_config),
        ((folder / "weights" / WEIGHTS).read_bytes(), _read_weights),
    ]


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    """Some bits, anywhere."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_or_grow(rng: random.Random, content: bytes) -> bytes:
    """The end missing, or something after it, or the middle gone."""
    at = rng.randrange(len(content))
    some = rng.randbytes(rng.randrange(60))
    return rng.choice([content[:at], content + some, content[:at] + content[at + 8 :], some])


def edit_header(rng: random.Random, content: bytes) -> bytes:
    """Other types, shapes, names and offsets in the header, which stays well-formed."""
    header, rest = _open(content)
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice([key for key in header if key != "__metadata__"] or ["__metadata__"])
        entry, other = ({**_mapping(header.get(key))} for key in (name, rng.choice([*header, ""])))
        change = rng.randrange(6)
        if change == 0:
            header.pop(name, None)
        elif change == 1:
            header[rng.choice(["mean", "k", "vectors", "bias", "x", ""])] = header.pop(name, {})
        elif change == 2 and "shape" in other:
            header[name] = {**entry, "shape": other["shape"]}
        elif change == 3:
            header[name] = {**entry, "shape": _reshape(rng, entry.get("shape", [1]))}
        elif change == 4:
            header[name] = {**entry, "dtype": rng.choice(_TYPES)}
        else:
            header[name] = random_json(rng)
    return _close(header, rest)


def swap_types(rng: random.Random, content: bytes) -> bytes:
    """Other types of the same width, so that the file is a whole one."""
    header, rest = _open(content)
    for entry in header.values():
        if "dtype" in entry and rng.random() < 0.5:
            kind, factor = rng.choice([("I32", 1), ("U32", 1), ("F16", 2), ("BF16", 2), ("F64", 0)])
            shape = list(entry["shape"])
            if factor == 0 and shape and shape[-1] % 2 == 0:
                entry["dtype"], entry["shape"] = kind, [*shape[:-1], shape[-1] // 2]
            elif factor and shape:
                entry["dtype"], entry["shape"] = kind, [*shape[:-1], shape[-1] * factor]
    return _close(header, rest)


def reshape_whole(rng: random.Random, content: bytes) -> bytes:
    """Another shape of as many elements, so that the file is a whole one."""
    header, rest = _open(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    header[name]["shape"] = _reshape(rng, header[name]["shape"])
    return _close(header, rest)


def edit_notes(rng: random.Random, content: bytes) -> bytes:
    """Random JSON in place of the notes, or of one of them."""
    header, rest = _open(content)
    notes = json.loads(header["__metadata__"]["howwhen"])
    notes[rng.choice([*notes, "k", "more"])] = random_json(rng)
    value = rng.choice([notes, notes, notes, random_json(rng)])
    text = rng.choice([json.dumps(value), "[" * 5000, "{", "1e999", ""][: rng.choice([1, 1, 5])])
    header["__metadata__"]["howwhen"] = text
    return _close(header, rest)


def edit_records(rng: random.Random, content: bytes) -> bytes:
    """Random JSON in place of a line, or of one of its fields."""
    lines = content.splitlines()
    row = json.loads(lines[0])
    row[rng.choice([*row, "more"])] = random_json(rng)
    deep = "[" * rng.choice([100, 100_000])
    some = rng.choice([json.dumps(row), json.dumps(random_json(rng)), deep, "NaN", "", "\ufeff{}"])
    lines[rng.randrange(len(lines))] = some.encode()
    return b"\n".join(lines)


_TENSOR_DAMAGES: list[Damage] = [
    flip_bits,
    cut_or_grow,
    edit_header,
    swap_types,
    reshape_whole,
    edit_notes,
]
_RECORD_DAMAGES: list[Damage] = [flip_bits, cut_or_grow, edit_records]
_DAMAGES: dict[Load, list[Damage]] = {
    **dict.fromkeys((_read_records, _read_traces, _read_config, read_titles), _RECORD_DAMAGES),
    _read_weights: [flip_bits, cut_or_grow, edit_header, swap_types, reshape_whole],
}
_TYPES = [
    "BOOL",
    "U8",
    "I16",
    "F16",
    "BF16",
    "I32",
    "F32",
    "F64",
    "I64",
    "F8_E4M3",
    "C64",
    "F4",
    "X",
]


def _open(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _close(header: dict[str, Any], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _reshape(rng: random.Random, shape: Any) -> Any:
    count = 1
    for size in shape if isinstance(shape, list) else ():
        count *= size if isinstance(size, int) else 1
    choices = [[count], [1, count], [count, 1], [0], [], [1, 1, count], [2**62, 4], [-1]]
    return rng.choice([*choices, list(reversed(shape)) if isinstance(shape, list) else []])


def random_json(rng: random.Random, depth: int = 3) -> Any:
    """A value of any type, nested up to some depth."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        keys = ("id", "k", "layer", "titles", "kind", "form", "model")
        return {rng.choice(keys): random_json(rng, depth - 1) for _ in range(rng.randrange(4))}
    plain: list[Any] = [
        None,
        True,
        "",
        "Sae",
        "Clusters",
        "Network",
        "LowRank",
        "é\u2028",
        "\ud800",
    ]
    numbers = [0, -1, 3, 10**30, 0.5, float("inf"), float("nan")]
    return rng.choice(plain if kind < 3 else numbers)
