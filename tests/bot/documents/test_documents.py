"""What the bytes of a file say, and that no document takes more than its share."""

from __future__ import annotations

import io
import json
import zlib

import pypdf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.documents.document_reader import Document, Problem, document_of, read_document
from bot.documents.extract import MAX_CHARACTERS, MAX_PAGES
from bot.documents.file_bytes import FileKind, decode, kind_of
from tests.bot.documents.made import assembled, paragraph, pdf, word

SLOW_S = 100.0
"""Seconds that a document gets where its time is not what is tested: this machine may be busy."""


def read(data: bytes) -> Document:
    return read_document(data, kind_of(data), max_seconds=SLOW_S)


def stream(content: bytes, extra: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), extra, content)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n", FileKind.PICTURE),
        (b"\xff\xd8\xff\xe0", FileKind.PICTURE),
        (b"RIFF\0\0\0\0WEBPVP8", FileKind.PICTURE),
        (b"RIFF\0\0\0\0WAVEfmt", FileKind.SOUND),
        (b"\0\0\0\x18ftypmp42", FileKind.VIDEO),
        (b"\0\0\0\x18ftypM4A ", FileKind.SOUND),
        (b"OggS\0", FileKind.SOUND),
        (b"%PDF-1.7", FileKind.PDF),
        (b"\xef\xbb\xbf\n%PDF-1.7", FileKind.PDF),
        (b"PK\x03\x04", FileKind.ZIP),
        (b"<svg/>", FileKind.TEXT),
        (b"RIFF is a format", FileKind.TEXT),
        (b"I liftyped", FileKind.TEXT),
        (b"", FileKind.TEXT),
    ],
)
def test_the_beginning_tells_what_a_file_is(data: bytes, kind: FileKind) -> None:
    assert kind_of(data) is kind


def test_a_pdf_gives_the_text_of_its_pages() -> None:
    assert read(pdf("First page.", "Second page.")) == Document("First page.\n\nSecond page.", 2, 2)


def test_a_word_document_gives_paragraphs_tables_and_breaks_and_nothing_twice() -> None:
    cell = f"<w:tc>{paragraph('a')}</w:tc>"
    fallback = (
        '<mc:AlternateContent xmlns:mc="urn:mc"><mc:Choice><w:r><w:t>once</w:t></w:r></mc:Choice>'
        "<mc:Fallback><w:r><w:t>once</w:t></w:r></mc:Fallback></mc:AlternateContent>"
    )
    body = (
        paragraph("Grüße")
        + "<w:p><w:r><w:t>one</w:t><w:br/><w:t>two</w:t><w:tab/><w:t>three</w:t></w:r></w:p>"
        + f"<w:tbl><w:tr>{cell}{cell}</w:tr></w:tbl>"
        + "<w:p><w:r><w:delText>deleted</w:delText></w:r></w:p>"
        + f"<w:p>{fallback}</w:p>"
    )
    document = read(word(body))
    assert document.problem is Problem.NONE
    assert document.text == "Grüße\none\ntwo\tthree\na | a |\n\nonce"


def test_of_a_long_pdf_the_first_pages_are_read() -> None:
    document = read(pdf(*(f"Page {number}" for number in range(MAX_PAGES + 3))))
    assert (document.num_read, document.num_pages) == (MAX_PAGES, MAX_PAGES + 3)
    assert document.text.endswith(f"Page {MAX_PAGES - 1}")


def test_of_a_long_word_document_the_beginning_is_read() -> None:
    document = read(word(paragraph("x" * (MAX_CHARACTERS + 10))))
    assert document.is_cut
    assert document.text == "x" * MAX_CHARACTERS


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("no pdf", b"%PDF-1.4 garbage", Problem.BROKEN),
        ("half a pdf", pdf("x")[:100], Problem.BROKEN),
        ("no text", pdf(""), Problem.EMPTY),
        ("no zip", b"PK\x03\x04 garbage", Problem.BROKEN),
        ("another zip", word("", name="xl/workbook.xml"), Problem.NOT_TEXT),
        ("not xml", word(b"<w:p>"), Problem.BROKEN),
        ("entities", word("<w:p/>", before='<!DOCTYPE a [<!ENTITY a "b">]>'), Problem.BROKEN),
        ("a file outside", word("", before='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), Problem.BROKEN),
        ("no text in word", word("<w:p/>"), Problem.EMPTY),
    ],
)
def test_what_cannot_be_read_is_told(name: str, data: bytes, problem: Problem) -> None:
    assert read(data) == Document(num_pages=read(data).num_pages, problem=problem)


def test_a_document_with_a_password_is_locked() -> None:
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    assert read(file.getvalue()).problem is Problem.LOCKED


def test_a_zip_bomb_is_read_no_further_than_its_bound() -> None:
    document = read(word(b"<w:p><w:r><w:t>" + b"x" * 200_000_000 + b"</w:t></w:r></w:p>"))
    assert len(document.text) == MAX_CHARACTERS
    assert document.is_cut


def test_a_document_that_keeps_its_reader_busy_is_given_up() -> None:
    data = word(
        b'<w:p a="' + b"x" * 60_000_000 + b'"/>'
    )  # older parsers look at it anew with every piece of it
    assert read_document(data, FileKind.ZIP, max_seconds=0.01).problem is Problem.BROKEN


def test_a_pdf_whose_stream_is_a_bomb_is_no_text() -> None:
    bomb = zlib.compress(zlib.compress(b"\0" * 300_000_000, 9), 9)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>"
    kids = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    filters = b"/Filter [/FlateDecode /FlateDecode]"
    data = assembled([b"<< /Type /Catalog /Pages 2 0 R >>", kids, page, stream(bomb, filters)])
    assert read(data).text == ""


def test_pages_that_contain_themselves_come_to_an_end() -> None:
    kids = b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 1000000 >>"
    assert read(assembled([b"<< /Type /Catalog /Pages 2 0 R >>", kids])).text == ""


def test_a_slow_document_is_ended_and_what_was_read_of_it_counts() -> None:
    assert read_document(pdf("x"), FileKind.PDF, max_seconds=0.0).problem is Problem.BROKEN
    lines = [{"pages": 3}, {"text": "one", "is_cut": False}]
    output = "\n".join(map(json.dumps, lines)).encode() + b'\n{"text": "tw'
    assert document_of(output) == Document("one", 1, 3)


def test_a_last_page_that_is_not_whole_does_not_count_and_joined_letters_are_parted() -> None:
    lines = [
        {"pages": 3},
        {"text": "\ufb01rst", "is_cut": False},
        {"text": "sec", "is_cut": True},
        {"end": ""},
    ]
    assert document_of("\n".join(map(json.dumps, lines)).encode()) == Document("first", 1, 3)
    assert document_of("\n".join(map(json.dumps, lines[:1] + lines[2:])).encode()) == Document(
        "sec", 1, 3, is_cut=True
    )


def test_the_beginning_of_a_document_ends_with_a_page_or_in_the_first_one() -> None:
    document = read(pdf("one one", "two two", "", "three"))
    assert document.beginning(100) is document
    assert document.beginning(17) == Document("one one\n\ntwo two", 3, 4)
    assert document.beginning(10) == Document("one one", 1, 4)
    assert document.beginning(4) == Document("one", 1, 4, is_cut=True)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "iso8859-15"]
)
def test_text_is_read_in_any_encoding(encoding: str) -> None:
    text = "Schöne Grüße aus Köln, schreibt Jörg. Es geht ihm gut, sagt er.\n" * 3
    assert decode(text.encode(encoding)) == text


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_bytes_break_the_look_at_them(data: bytes) -> None:
    assert kind_of(data) in FileKind
    text = decode(data)
    assert text is None or not any(ord(c) < 32 and c not in "\n\t" for c in text)
