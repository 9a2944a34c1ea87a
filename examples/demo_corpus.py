"""The corpus of the demo checkpoint: the King James Bible and Jane Austen's novels, from two Debian packages.

A document is one chapter as plain English: no headings, verse numbers or hard line breaks, paragraphs separated by an
empty line.
"""

import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

PACKAGES = ("bible-kjv-text", "r-cran-janeaustenr")
BIBLE_FILE = "usr/lib/bible.data"
AUSTEN_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"

_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):\d+ (.+)")
_CHAPTER_HEADING = re.compile(r"^[ ]*CHAPTER [IVXL\d]+[ ]*$", re.MULTILINE | re.IGNORECASE)
_CLOSING_MATTER = re.compile(r"^A NOTE ON THE TEXT$.*", re.MULTILINE | re.DOTALL)
_NOT_PROSE = re.compile(r"VOLUME [IVX]+|FINIS|THE END|[* ]+|\[.*\]|\*Vide .*", re.IGNORECASE)


def fetch(work: Path, sources: list[Path]) -> Path:
    """Unpack the packages below ``work`` and return the folder that stands for the root of their file tree.

    Args:
        work: Folder for downloads and unpacked files.
        sources: ``.deb`` files, or folders that packages were unpacked into. Empty: download with ``apt-get``.

    Raises:
        FileNotFoundError: The sources lack one of the two texts.
    """
    if not sources:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=work, check=True)
        sources = [path for name in PACKAGES for path in work.glob(f"{name}_*.deb")]
    root = work / "packages"
    for source in sources:
        if source.is_dir():
            subprocess.run(["cp", "-r", f"{source}/.", str(root)], check=True)
        else:
            subprocess.run(["dpkg-deb", "-x", str(source), str(root)], check=True)
    for name in (BIBLE_FILE, AUSTEN_FILE):
        if not (root / name).is_file():
            raise FileNotFoundError(f"sources: expected packages {PACKAGES}, got none that holds {name}.")
    return root


def read_bible(data: bytes) -> str:
    """The text of ``bible.data``: one verse a line, ``Ge1:1 In the beginning ...``.

    The file is an 80-byte title, window size and count, the windows' offsets, and the windows as LZW streams of
    ``compress`` whose magic bytes are left out. Source: the package ``bible-kjv``, ``tsl.c``.
    """
    (count,) = struct.unpack_from(">i", data, 88)
    offsets = [*struct.unpack_from(f">{count}i", data, 92), len(data)]
    windows = (b"\x1f\x9d\x90" + data[start:end] for start, end in pairwise(offsets))
    return b"".join(
        subprocess.run(["gzip", "-dc"], input=window, stdout=subprocess.PIPE, check=True).stdout for window in windows
    ).decode("ascii")


def read_austen(data: bytes) -> list[str]:
    """The novels in an R lazy-load database, each a vector of lines.

    The file is a row of values, each its length and a zlib stream of R's serialization (version 3, XDR).
    Source: "R Internals", chapter 1.8.

    Raises:
        ValueError: A value isn't a character vector.
    """
    novels = []
    while data:
        stream = zlib.decompressobj()
        value = stream.decompress(data[4:])
        data = stream.unused_data
        (encoding_length,) = struct.unpack_from(">i", value, 14)
        position = 18 + encoding_length
        kind, count = struct.unpack_from(">ii", value, position)
        if value[:2] != b"X\n" or kind & 0xFF != 16:
            raise ValueError(f"data: expected character vectors in XDR form, got type {kind & 0xFF}.")
        position += 8
        lines = []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", value, position + 4)
            lines.append(value[position + 8 : position + 8 + length].decode("utf-8"))
            position += 8 + length
        novels.append("\n".join(lines))
    return novels


def bible_chapters(text: str) -> Iterator[str]:
    """Chapters of the Bible, each one paragraph."""
    chapters: dict[tuple[str, str], list[str]] = {}
    for book, chapter, verse in _VERSE.findall(text):
        chapters.setdefault((book, chapter), []).append(" ".join(verse.split()))
    for verses in chapters.values():
        yield " ".join(verses)


def austen_chapters(novel: str) -> Iterator[str]:
    """Chapters of a novel, without title page, headings, editors' notes and emphasis marks."""
    for chapter in _CHAPTER_HEADING.split(_CLOSING_MATTER.sub("", novel))[1:]:
        paragraphs = (" ".join(lines.split()) for lines in re.split(r"\n[ ]*\n", chapter))
        prose = (p.replace("_", "") for p in paragraphs if p and not _NOT_PROSE.fullmatch(p))
        yield "\n\n".join(prose)


def split(documents: list[str], every: int = 50) -> tuple[list[str], list[str]]:
    """Training and held-out documents: of each ``every`` consecutive chapters, the middle one is held out (2 %)."""
    held_out = [document for i, document in enumerate(documents) if i % every == every // 2]
    training = [document for i, document in enumerate(documents) if i % every != every // 2]
    return training, held_out
