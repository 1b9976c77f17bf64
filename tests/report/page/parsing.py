"""Parse a page with the standard library, to look at its elements without a browser."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree.ElementTree import Element, SubElement

from runner.report.page.render import render_page

VOID = {"meta", "link", "input", "br", "img", "hr", "wbr"}


class _Parser(HTMLParser):
    """Builds a tree of elements; an end tag that does not fit is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("document")
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        element = SubElement(self.open[-1], tag, {key: value or "" for key, value in attrs})
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        element = self.open[-1]
        if len(element):
            element[-1].tail = (element[-1].tail or "") + data
        else:
            element.text = (element.text or "") + data


def parsed(html: str) -> Element:
    """Return the root element of a page; raises AssertionError where tags do not match."""
    parser = _Parser()
    parser.feed(html)
    assert len(parser.open) == 1
    return parser.root


def section_of(run_set, key: str) -> Element:
    """Return the element of a section of a rendered page."""
    (found,) = parsed(render_page(run_set)).findall(f".//section[@id='{key}-section']")
    return found


def text_of(element: Element) -> str:
    """Return the text of an element and of all in it, with single spaces."""
    return " ".join("".join(element.itertext()).split())
