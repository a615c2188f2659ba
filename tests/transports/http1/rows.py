"""Requests of HTTP/1.1 as bytes, each with what a server has to make of it.

The sources are the test list of llhttp (by file), RFC 9112 and RFC 9110 (by section), and the known
ways to make two parsers disagree on where a request ends ("smuggling"). Where the RFC leaves a
choice that could be used for that, the verdict is to refuse.
"""

# ruff: noqa: E501 - in a table a row is a line.

from __future__ import annotations

import json
from typing import Final, NamedTuple


class Row(NamedTuple):
    """One conversation of a client that sends everything at once.

    Attributes:
        name: Unique among the rows.
        source: Where the case is from.
        data: What is sent.
        told: What the answers tell, in order; see `Answer.told`.
        end: ``"open"``: the connection goes on. ``"closed"``: the last answer ends it, and what
            follows is not read. ``"refused"``: one more answer refuses what follows and ends it.
            ``"cut"``: the data is half a request, and the client says no more.
        statuses: Which ones may refuse; empty for any that `REFUSALS` has.
        or_refused: The RFC lets a server refuse what it does not want, and nothing depends on it.
        bodiless: Numbers of the answers that have no body, as those to HEAD.
    """

    name: str
    source: str
    data: bytes
    told: tuple[str, ...] = ()
    end: str = "open"
    statuses: tuple[int, ...] = ()
    or_refused: bool = False
    bodiless: tuple[int, ...] = ()


REFUSALS: Final = (400, 405, 408, 411, 413, 414, 417, 426, 431, 501, 505)

_INFER: Final = "/v2/models/echo/infer"


def text(said: str) -> bytes:
    """Return a body that the model "echo" answers with what is said in it."""
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [said]}
    return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()


def head(first: str | bytes, *headers: str | bytes, host: str | bytes = "host: a") -> bytes:
    """Return a request line and headers, with a host among them unless there is to be none."""
    lines = [first, host, *headers] if host else [first, *headers]
    encoded = [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    return b"".join(line + b"\r\n" for line in encoded) + b"\r\n"


def get(target: str | bytes = "/x", *headers: str | bytes, version: str = "1.1") -> bytes:
    """Return a request without a body."""
    raw = target if isinstance(target, bytes) else target.encode("latin-1")
    return head(b"GET " + raw + b" HTTP/" + version.encode(), *headers)


def post(body: bytes, *headers: str | bytes, version: str = "1.1") -> bytes:
    """Return a request to the model with any body, framed by these headers alone."""
    return head(f"POST {_INFER} HTTP/{version}", *headers) + body


def sized(said: str, *headers: str | bytes, version: str = "1.1") -> bytes:
    """Return a request to the model, framed by its length."""
    body = text(said)
    return post(body, f"content-length: {len(body)}", *headers, version=version)


CHUNKED: Final = "transfer-encoding: chunked"
END: Final = b"0\r\n\r\n"


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    """Return one chunk."""
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def chunked(said: str, *headers: str | bytes, extension: bytes = b"", end: bytes = END) -> bytes:
    """Return a request to the model in two chunks."""
    body = text(said)
    both = chunk(body[:7], extension) + chunk(body[7:], extension)
    return post(both + end, CHUNKED, *headers)


PROBE: Final = get("/after", "connection: close")
"""What is sent behind every row. Whoever answers it has taken the row for whole."""
PROBED: Final = "404 /after"

X: Final = ("404 /x",)
HELLO: Final = ("200 hello",)
_N: Final = len(text("hello"))
_LENGTH: Final = f"content-length: {_N}"
_BODY: Final = text("hello")
_CHUNKS: Final = chunk(_BODY) + END
# A request that must not be seen: it stands where one of two readings of the bytes has a body.
_HIDDEN: Final = get("/hidden")


def _ok(name: str, source: str, data: bytes, *told: str, bodiless: tuple[int, ...] = ()) -> Row:
    return Row(name, source, data, told or X, bodiless=bodiless)


def _closes(name: str, source: str, data: bytes, *told: str) -> Row:
    return Row(name, source, data, told or X, "closed")


def _no(name: str, source: str, data: bytes, *statuses: int) -> Row:
    return Row(name, source, data, (), "refused", statuses)


def _either(name: str, source: str, data: bytes, *told: str) -> Row:
    return Row(name, source, data, told or X, or_refused=True)


def _cut(name: str, source: str, data: bytes) -> Row:
    return Row(name, source, data, (), "cut")


# fmt: off
_REQUEST_LINES: Final = [
    _ok("options", "llhttp sample", head("OPTIONS /x HTTP/1.1", "A: b", "C:\t d"), "404 /x"),
    _ok("head", "llhttp sample", head("HEAD /x HTTP/1.1"), "404", bodiless=(0,)),
    _ok("head of what is there", "RFC 9110 9.3.2", head("HEAD /v2 HTTP/1.1"), "200", bodiless=(0,)),
    _ok(
        "curl",
        "llhttp sample",
        head(
            "GET /x HTTP/1.1",
            "User-Agent: curl/7.18.0 (i486-pc-linux-gnu) zlib/1.2.3.3",
            "Accept: */*",
            host="Host: 0.0.0.0=5000",
        ),
    ),
    _ok(
        "browser",
        "llhttp sample",
        get(
            "/x",
            "Accept: text/html,application/xml;q=0.9,*/*;q=0.8",
            "Accept-Charset: ISO-8859-1,utf-8;q=0.7,*;q=0.7",
            "Keep-Alive: 300",
            "Connection: keep-alive",
        ),
    ),
    _no("no headers", "llhttp sample", b"GET /x HTTP/1.1\r\n\r\n", 400),
    _closes("HTTP/1.0", "llhttp sample", head("GET /x HTTP/1.0", host="")),
    _closes("HTTP/1.0 with host", "llhttp sample", get(version="1.0")),
    # RFC 9112 2.2: at least one empty line before a request is to be ignored.
    _ok("empty line before", "llhttp sample", b"\r\n" + get()),
    _either("empty lines before", "RFC 9112 2.2", b"\r\n\r\n\r\n" + get()),
    # Neither ends a line; before a request nothing can hide in them.
    _either("LF before", "RFC 9112 2.2", b"\n" + get()),
    _either("CR before", "RFC 9112 2.2", b"\r" + get()),
    _no("space before", "RFC 9112 2.2", b" " + get()),
    _no("tab before", "RFC 9112 2.2", b"\t" + get()),
    _no("NUL before", "RFC 9112 2.2", b"\0" + get()),
    _no("empty line and space before", "RFC 9112 2.2", b"\r\n " + get()),
    _no("HTTP/0.9", "llhttp sample", b"GET /x\r\n\r\n"),
    _no("no version", "RFC 9112 3", head("GET /x"), 400, 505),
    _no("no version after a space", "RFC 9112 3", head("GET /x ")),
    _no("no target", "RFC 9112 3", head("GET HTTP/1.1")),
    _no("empty target", "RFC 9112 3", head("GET  HTTP/1.1")),
    _no("space in target", "llhttp uri", get("/foo bar/")),
    # RFC 9112 3: a parser may split on any whitespace; then a target may hold a version.
    _no("two spaces after method", "RFC 9112 3", head("GET  /x HTTP/1.1")),
    _no("two spaces before version", "RFC 9112 3", head("GET /x  HTTP/1.1")),
    _no("tabs for spaces", "RFC 9112 3", head("GET\t/x\tHTTP/1.1")),
    _no("vertical tab for space", "RFC 9112 3", head("GET /x\x0bHTTP/1.1")),
    _no("two versions", "RFC 9112 3", head("GET /x HTTP/1.1 HTTP/1.1")),
    _no("space after version", "RFC 9112 3", head("GET /x HTTP/1.1 ")),
    _no("CR after version", "RFC 9112 2.2", head("GET /x HTTP/1.1\r")),
    _no("NUL after version", "RFC 9112 2.2", head("GET /x HTTP/1.1\0")),
    _no("HTTP/1.2", "RFC 9112 2.3", get(version="1.2")),
    _no("HTTP/2.0", "RFC 9112 2.3", get(version="2.0")),
    _no("HTTP/0.9 in words", "RFC 9112 2.3", get(version="0.9")),
    _no("HTTP/5.6", "llhttp invalid, lenient-version", get(version="5.6")),
    _no("HTTP/1", "RFC 9112 2.3", get(version="1")),
    _no("HTTP/1.", "RFC 9112 2.3", get(version="1.")),
    _no("HTTP/1.11", "RFC 9112 2.3", get(version="1.11")),
    _no("HTTP/01.1", "RFC 9112 2.3", get(version="01.1")),
    _no("HTTP/+1.1", "RFC 9112 2.3", get(version="+1.1")),
    _no("HTTP/1,1", "RFC 9112 2.3", get(version="1,1")),
    _no("lower-case protocol", "RFC 9112 2.3", head("GET /x http/1.1")),
    _no("ICE", "llhttp invalid", head("GET /x ICE/1.0")),
    _no("IHTTP", "llhttp invalid", head("GET /x IHTTP/1.0")),
    _no("RTSP", "llhttp invalid", head("PUT /x RTSP/1.0")),
    _no("SOURCE in ICE", "llhttp method", head("SOURCE /x ICE/1.0")),
    _no("HTTPS", "RFC 9112 2.3", head("GET /x HTTPS/1.1")),
    _no("preface of HTTP/2", "RFC 9113 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    _no("an answer", "RFC 9112 3", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    _no("hello of TLS", "", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)),
    _no("header of the PROXY protocol", "", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n" + get()),
    _no("SSH", "", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
]

_METHODS: Final = [
    # RFC 9110 9.1: what is not known may be answered 501 or, where it is, 405.
    *(
        _either(name, "llhttp method", head(f"{name} /x HTTP/1.1"))
        for name in ("REPORT", "PURGE", "SEARCH", "LINK", "UNLINK", "SOURCE", "ANNOUNCE")
    ),
    _either("M-SEARCH", "llhttp method", head("M-SEARCH * HTTP/1.1"), "404 *"),
    _either(
        "PATCH", "llhttp method", head("PATCH /x HTTP/1.1", "content-length: 9") + b"GET /y HT"
    ),
    _either("unknown method", "RFC 9110 9.1", head("FOO /x HTTP/1.1")),
    _either("letter too many", "llhttp invalid", head("MKCOLA /x HTTP/1.1")),
    _no("lower-case method", "RFC 9110 9.1", head("get /x HTTP/1.1")),
    _no("method that is no token", "RFC 9110 9.1", head("G(T /x HTTP/1.1")),
    _no("method with NUL", "RFC 9110 9.1", head("GE\0T /x HTTP/1.1")),
    _no("method with CR", "RFC 9110 9.1", head("GE\rT /x HTTP/1.1")),
    _no("no method", "RFC 9112 3", head(" /x HTTP/1.1")),
    _no("long method", "RFC 9110 9.1", head("A" * 5000 + " /x HTTP/1.1")),
    # Behind CONNECT the bytes are not HTTP any more, for whoever stands between: nothing of it is
    # read, whatever it is answered.
    _closes(
        "CONNECT",
        "llhttp method",
        head("CONNECT a.example:443 HTTP/1.1"),
        "404 a.example:443",
    ),
    _closes(
        "CONNECT in 1.0",
        "llhttp method",
        head("CONNECT HOME0.EXAMPLE:443 HTTP/1.0") + b"some data",
        "404 HOME0.EXAMPLE:443",
    ),
    _closes(
        "CONNECT with underscore",
        "llhttp uri",
        head("CONNECT home_0.example:443 HTTP/1.0"),
        "404 home_0.example:443",
    ),
    _closes(
        "CONNECT with body",
        "llhttp method",
        head("CONNECT a.example:443 HTTP/1.0", "content-length: 10") + b'blarfcicle"',
        "404 a.example:443",
    ),
    _closes("CONNECT with a path", "RFC 9110 9.3.6", head("CONNECT /x HTTP/1.1")),
    Row(
        "wrong method",
        "RFC 9110 15.5.6",
        head("DELETE /v2 HTTP/1.1") + get(),
        ("405 DELETE", "404 /x"),
    ),
    _either("TRACE", "RFC 9110 9.3.8", head("TRACE /x HTTP/1.1", "cookie: secret=1")),
]

_TARGETS: Final = [
    _ok("question mark in query", "llhttp uri", get("/x?foo=bar?baz")),
    _ok("escaped", "RFC 9112 3.2.1", get("/%78")),
    _ok("many slashes", "RFC 9112 3.2.1", get("//x//y"), "404 //x//y"),
    _ok("scheme within a path", "RFC 9112 3.2.1", get("/a:///b"), "404 /a:///b"),
    _ok("dots", "RFC 9112 3.2.1", get("/a/../x"), "404 /a/../x"),
    _ok("escaped slash is no slash", "RFC 3986 2.2", get("/v2%2fmodels"), "404"),
    _either("escape that is none", "RFC 3986 2.1", get("/%zz"), "404"),
    _ok("absolute-form", "RFC 9112 3.2.2", get("http://a/x")),
    _ok("absolute-form with port", "RFC 9112 3.2.2", get("http://a:1234/x")),
    _ok("absolute-form in capitals", "RFC 9112 3.2.2", get("HTTP://a/x")),
    _ok("absolute-form without path", "llhttp uri", get("http://a:1234"), "200"),
    _ok("absolute-form, query only", "llhttp uri", get("http://a?hail=all"), "200"),
    # RFC 9110 4.2.4: a sign of someone who is being misled.
    _either("user in absolute-form", "llhttp uri", get("http://a%12:b!&*$@a:1234/x")),
    _no("absolute-form without host", "RFC 9110 4.2.1", get("http:///x")),
    _either("another scheme", "RFC 9112 3.2.2", get("ftp://a/x"), "404 ftp://a/x"),
    _no("authority-form for GET", "RFC 9112 3.2.3", get("a:443")),
    _either("asterisk-form", "RFC 9112 3.2.4", head("OPTIONS * HTTP/1.1"), "404 *"),
    _either("asterisk-form for GET", "RFC 9112 3.2.4", get("*"), "404 *"),
    _no("path without slash", "RFC 9112 3.2", get("x")),
    # A "#" ends the path for one reader and is part of it for another.
    _no("fragment", "llhttp uri, sample", get("/x?page=1#posts-17408")),
    _no("only a fragment", "RFC 9112 3.2", get("#x")),
    _either("quotes", "llhttp uri", get('/x?foo="bar"')),
    _either("vertical bar", "llhttp uri", get("/x?query=|")),
    _either("backslash", "RFC 3986", get("/x?a=\\"), "404 /x"),
    _no("UTF-8", "llhttp uri", get("/δ¶/x".encode())),
    _no("Latin-1 in query", "RFC 9112 3.2", get("/x?\xe9")),
    _no("NUL in target", "RFC 9112 3.2", get("/x\0y")),
    _no("NUL in query", "RFC 9112 3.2", get("/x?\0y")),
    _no("CR in target", "RFC 9112 3.2", get("/x\ry")),
    _no("LF in target", "RFC 9112 3.2", get("/x\ny")),
    _no("tab in target", "RFC 9112 3.2", get("/x\ty")),
    _no("DEL in target", "RFC 9112 3.2", get("/x\x7f")),
    _ok("target of 8000 bytes", "RFC 9112 3", get("/x?" + "a" * 8000)),
    _no("target of 64 KiB", "RFC 9110 15.5.15", get("/x?" + "a" * 2**16), 414, 431),
    _no("path of 64 KiB", "RFC 9110 15.5.15", get("/" + "a" * 2**16), 414, 431),
]

_HOSTS: Final = [
    _no("host missing", "RFC 9112 3.2", head("GET /x HTTP/1.1", "a: b", host=""), 400),
    _no("host twice", "RFC 9112 3.2", get("/x", "host: b"), 400),
    _no("same host twice", "RFC 9112 3.2", get("/x", "host: a"), 400),
    _no("host twice in 1.0", "RFC 9112 3.2", get("/x", "host: b", version="1.0"), 400),
    _no("host missing, absolute-form", "RFC 9112 3.2.2", b"GET http://a/x HTTP/1.1\r\n\r\n", 400),
    _either("empty host", "RFC 9112 3.2", head("GET /x HTTP/1.1", host="host:")),
    _ok("host with port", "RFC 9110 7.2", head("GET /x HTTP/1.1", host="Host: a.example:80")),
    _ok("host of IPv6", "RFC 9110 7.2", head("GET /x HTTP/1.1", host="Host: [::1]:8000")),
    _ok("host in capitals", "RFC 9110 7.2", head("GET /x HTTP/1.1", host="HOST:A")),
    *(
        _no(f"host {bad!r}", "RFC 9112 3.2", head("GET /x HTTP/1.1", host=f"host: {bad}"), 400)
        for bad in ("a b", "a/b", "a@b", "http://a/", "a\tb", "a?b", "a#b", "a\\b", "a\x01", "<a>")
    ),
]

_HEADERS: Final = [
    _ok("value of plus signs", "llhttp sample", get("/x", "aaaaaaaaaaaaa:++++++++++")),
    _ok("empty value", "RFC 9112 5", get("/x", "a:")),
    _ok("value of spaces", "RFC 9112 5", get("/x", "a:  \t ")),
    _ok("colons in value", "RFC 9112 5", get("/x", "a: b: c:")),
    _ok("every letter of a token", "RFC 9110 5.6.2", get("/x", "!#$%&'*+-.^_`|~09azAZ: b")),
    _ok("UTF-8 in value", "llhttp sample", get("/x", "Test: Düsseldorf".encode())),
    _ok("byte 255 in value", "llhttp sample", get("/x", b"Header2: \xffValue2")),
    # It names no length, for a server that does not make it one (as CGI does).
    _ok("underscore", "RFC 9112 5.1", get("/x", "content_length: 5", "transfer_encoding: chunked")),
    _no("at sign in name", "llhttp invalid", get("/x", "Na@: Failure")),
    _no("control in name", "llhttp invalid", get("/x", "Foo\x01\test: Bar")),
    _no("empty name", "llhttp invalid", get("/x", ": Bar")),
    _no("space for name", "RFC 9112 5.1", get("/x", " : Bar")),
    _no("no colon", "RFC 9112 5", get("/x", "foo")),
    _no("no colon, value", "RFC 9112 5", get("/x", "foo bar")),
    _no("space before colon", "RFC 9112 5.1", get("/x", "foo : bar"), 400),
    _no("tab before colon", "RFC 9112 5.1", get("/x", "foo\t: bar"), 400),
    _no("NUL in name", "RFC 9110 5.1", get("/x", "na\0o: bar")),
    _no("CR in name", "RFC 9110 5.1", get("/x", "na\ro: bar")),
    _no("byte above 127 in name", "RFC 9110 5.1", get("/x", b"na\xffo: bar")),
    _no("parenthesis in name", "RFC 9110 5.1", get("/x", "na(me: bar")),
    _no("quote in name", "RFC 9110 5.1", get("/x", 'na"me: bar')),
    _no("NUL in value", "RFC 9110 5.5", get("/x", "foo: b\0r")),
    _no("CR in value", "llhttp invalid", get("/x", "Foo: 1\rBar: 2")),
    _no("CR at end of value", "RFC 9112 2.2", get("/x", "Foo: 1\r")),
    _no("form feed in value", "llhttp lenient-headers", get("/x", "a: \f")),
    _no("form feed within value", "llhttp lenient-header-value-relaxed", get("/x", "a: b\fc")),
    _no("escape in value", "RFC 9110 5.5", get("/x", "a: \x1b[0m")),
    _either("DEL in value", "RFC 9110 5.5", get("/x", "a: \x7f")),
    _no("form feed in second request", "llhttp lenient-headers", get("/x", "a: \f")),
    _no("space after request line", "llhttp invalid", b"GET /x HTTP/1.1\r\n Host: a\r\n\r\n"),
    _no(
        "space after request line, host too",
        "llhttp lenient",
        b"GET /x HTTP/1.1\r\n a: b\r\nhost: a\r\n\r\n",
    ),
    _no("folded name", "llhttp invalid", get("/x", "name\r\n : value")),
    # RFC 9112 5.2: to be refused, or read as spaces. Some readers take the line for a header.
    _no("folded value", "llhttp sample", get("/x", "Line1:   abc\r\n\tdef\r\n ghi\r\n\t \tqrs")),
    _no("folded after empty value", "llhttp sample", get("/x", "Line3:\r\n line3")),
    _no("fold of spaces only", "llhttp sample", get("/x", "Line4: \r\n ")),
    _no(
        "folded certificate", "llhttp sample", get("/x", "X-SSL: --BEGIN--\r\n\tMIIF\r\n\t--END--")
    ),
    _no(
        "folded connection",
        "llhttp connection",
        get("/x", "Connection: Something,\r\n Upgrade, ,Keep-Alive"),
    ),
    _no("folded close", "llhttp sample", get("/x", "Connection:\r\n close")),
    _no("corrupted name", "llhttp invalid", get("/x", b"X-Some-Header\r\033\065\325eep-Alive")),
    _no("corrupted connection", "llhttp invalid", get("/x", b"Connection\r\033\065\325eep-Alive")),
    _no(
        "bytes for the last line",
        "llhttp invalid",
        b"GET /x HTTP/1.1\r\nHost: a\r\n\rZGET /evil: HTTP/1.1\r\nHost: a\r\n\r\n",
    ),
    _no("CR CR LF for the last line", "RFC 9112 2.2", b"GET /x HTTP/1.1\r\nhost: a\r\n\r\r\n"),
    _no("CR CR LF for a line", "RFC 9112 2.2", b"GET /x HTTP/1.1\r\nhost: a\r\r\na: b\r\n\r\n"),
    _no("LF ends the request line", "RFC 9112 2.2", b"GET /x HTTP/1.1\nhost: a\r\n\r\n"),
    _no("LF ends a header", "llhttp invalid", b"GET /x HTTP/1.1\r\nhost: a\na: b\r\n\r\n"),
    _no("LF ends the last header", "RFC 9112 2.2", b"GET /x HTTP/1.1\r\nhost: a\n\r\n"),
    _no("LF for the last line", "RFC 9112 2.2", b"GET /x HTTP/1.1\r\nhost: a\r\n\n"),
    _no("LF everywhere", "llhttp invalid, sample", b"GET /x HTTP/1.1\nhost: a\na: b\n\n"),
    _no("LF CR for CR LF", "RFC 9112 2.2", b"GET /x HTTP/1.1\n\rhost: a\n\r\n\r"),
    _ok("header of 8000 bytes", "RFC 9110 5.4", get("/x", "a: " + "b" * 8000)),
    _no("header of 64 KiB", "RFC 6585 5", get("/x", "a: " + "b" * 2**16), 431),
    _no("name of 64 KiB", "RFC 6585 5", get("/x", "a" * 2**16 + ": b"), 431),
    _no("1000 headers", "RFC 6585 5", get("/x", *(f"h{n}: v" for n in range(1000))), 431),
    _no(
        "headers of 64 KiB",
        "RFC 6585 5",
        get("/x", *(f"h{n}: {'v' * 1000}" for n in range(64))),
        431,
    ),
    _ok("50 headers", "RFC 6585 5", get("/x", *(f"h{n}: v" for n in range(50)))),
    _ok("one name often", "RFC 9110 5.3", get("/x", *(["accept: a/b"] * 20))),
]

_LENGTHS: Final = [
    _ok("sized", "RFC 9112 6.2", sized("hello"), "200 hello"),
    _ok("name in capitals", "RFC 9110 5.1", post(_BODY, f"CONTENT-LENGTH: {_N}"), "200 hello"),
    _ok("zeroes before", "llhttp content-length", post(_BODY, f"Content-Length: 00{_N}"), "200 hello"),
    _ok("headers behind", "llhttp content-length", post(_BODY, f"Content-Length: {_N}", "Ohai: world"), "200 hello"),
    _ok("spaces around length", "llhttp content-length", post(_BODY, f"Content-Length:  {_N} "), "200 hello"),
    _ok("tab before length", "RFC 9112 5", post(_BODY, f"Content-Length:\t{_N}"), "200 hello"),
    _ok("length 0", "RFC 9112 6.2", get("/x", "content-length: 0")),
    _either("body of GET", "RFC 9110 9.3.1", get("/x", f"content-length: {len(_HIDDEN)}") + _HIDDEN),
    _either("body of HEAD", "RFC 9110 9.3.2", head("GET /x HTTP/1.1", "content-length: 5") + b"hello"),
    _either("body of OPTIONS", "RFC 9110 9.3.7", head("OPTIONS /x HTTP/1.1", "content-length: 5") + b"hello"),
    _either("body of DELETE", "RFC 9110 9.3.5", head("DELETE /x HTTP/1.1", "content-length: 5") + b"hello"),
    _closes("body of GET in 1.0", "llhttp content-length", get("/x", "conTENT-Length: 5", version="1.0") + b"HELLO"),
    _no("lengths differ", "llhttp content-length", post(b"ab", "content-length: 1", "content-length: 2")),
    # RFC 9110 8.6 lets a server take the same number twice; a proxy in front may count them.
    _no("length twice", "RFC 9110 8.6", post(_BODY, _LENGTH, _LENGTH)),
    _no("length twice, apart", "RFC 9110 8.6", post(_BODY, _LENGTH, "a: b", _LENGTH)),
    _no("length as a list", "RFC 9110 8.6", post(_BODY, f"{_LENGTH}, {_N}")),
    _no("lengths differ in a list", "RFC 9110 8.6", post(b"hello", "content-length: 5, 6")),
    _no("second length is empty", "RFC 9112 6.3", post(_BODY, _LENGTH, "content-length:")),
    *(
        _no(f"length {bad!r}", "RFC 9112 6.3", post(b"hello", f"content-length: {bad}"))
        for bad in (
            "+5", "-1", "-5", "0x5", "5x", "5 5", "5_0", "5.0", "5,", ",5", "5;a", '"5"', "five",
            "1e1", "5\x00", "5\x0b", "\x0b5", "5\x0c", "\x0c5", "\xd9\xa5",
        )
    ),
    _no("length 4 2", "llhttp content-length", post(b"", "Content-Length: 4 2")),
    _no("length 13 37", "llhttp content-length", post(b"", "Content-Length: 13 37")),
    _no("empty length", "llhttp content-length", post(b"", "Content-Length:")),
    _no("length of spaces", "RFC 9112 6.3", post(b"", "Content-Length:  \t")),
    _no("length of 20 digits", "RFC 9112 6.3", post(b"", "content-length: 99999999999999999999")),
    _no("length of 21 digits", "llhttp content-length", post(b"", "content-length: 1000000000000000000000")),
    _no("length 2^64 + 5", "RFC 9112 6.3", post(b"hello", "content-length: 18446744073709551621")),
    _no("length 2^64", "RFC 9112 6.3", post(b"", "content-length: 18446744073709551616")),
    _no("length 2^63", "RFC 9112 6.3", post(b"", "content-length: 9223372036854775808")),
    _no("length 2^32 + 5", "RFC 9112 6.3", post(b"hello", "content-length: 4294967301"), 400, 413),
    _no("length of 5000 digits", "RFC 9112 6.3", post(b"hello", f"content-length: {'9' * 5000}")),
    _no("CR for the dash", "llhttp content-length", post(b"abc", "Content\rLength: 003")),
    _no("space before colon of length", "RFC 9112 5.1", post(_HIDDEN, f"content-length : {len(_HIDDEN)}")),
    _no("length in a fold", "llhttp invalid", head("POST /x HTTP/1.1", f"Foo: bar\r\n Content-Length: {len(_HIDDEN)}") + _HIDDEN),
    _no("length behind LF", "llhttp invalid", get("/x", f"Dummy: x\nContent-Length: {len(_HIDDEN)}") + _HIDDEN),
    _no("length behind CR", "RFC 9112 2.2", get("/x", f"Dummy: x\rContent-Length: {len(_HIDDEN)}") + _HIDDEN),
    _either("no length for POST", "RFC 9112 6.3", post(b""), "400"),
]

_CODINGS: Final = [
    _ok("chunked", "llhttp transfer-encoding", chunked("hello"), "200 hello"),
    _ok("chunked in capitals", "RFC 9112 7", post(_CHUNKS, "Transfer-Encoding: CHUNKED"), "200 hello"),
    _ok("spaces around chunked", "RFC 9112 5", post(_CHUNKS, "Transfer-Encoding:  chunked "), "200 hello"),
    _ok("tab before chunked", "RFC 9112 5", post(_CHUNKS, "Transfer-Encoding:\tchunked"), "200 hello"),
    _ok("no space before chunked", "RFC 9112 5", post(_CHUNKS, "Transfer-Encoding:chunked"), "200 hello"),
    # CL.TE and TE.CL: which one counts is what the two parsers do not agree on.
    _no("length and chunked", "RFC 9112 6.3", post(_CHUNKS, f"content-length: {len(_CHUNKS)}", CHUNKED)),
    _no("chunked and length", "RFC 9112 6.3", post(_CHUNKS, CHUNKED, f"content-length: {len(_CHUNKS)}")),
    _no("CL.TE", "smuggling", post(END + _HIDDEN, f"content-length: {len(END + _HIDDEN)}", CHUNKED)),
    _no("TE.CL", "smuggling", post(chunk(_HIDDEN) + END, CHUNKED, "content-length: 4")),
    _no("length 0 and chunked", "smuggling", post(_CHUNKS, "content-length: 0", CHUNKED)),
    _no("CL.TE in 1.0", "smuggling", post(END + _HIDDEN, f"content-length: {len(END + _HIDDEN)}", CHUNKED, version="1.0")),
    # RFC 9112 6.1: faulty framing, as HTTP/1.0 knows no transfer coding.
    _no("chunked in 1.0", "RFC 9112 6.1", post(_CHUNKS, CHUNKED, version="1.0")),
    _no("chunked in 1.0, keep-alive", "RFC 9112 6.1", post(_CHUNKS, CHUNKED, "connection: keep-alive", version="1.0")),
    _no("coding before length", "llhttp transfer-encoding", post(b"World", "Transfer-Encoding: identity", "Content-Length: 5")),
    _no("coding after length", "llhttp content-length", post(b"a", "Content-Length: 1", "Transfer-Encoding: identity")),
    _no("empty coding and length", "llhttp transfer-encoding", post(b"hello", "Transfer-Encoding:", "Content-Length: 5")),
    _no("empty codings and length", "llhttp transfer-encoding", post(b"2\r\nAA\r\n0\r\n", "Content-Length: 10", *["Transfer-Encoding:"] * 3)),
    _no("pigeons", "llhttp transfer-encoding", post(b"", "Transfer-Encoding: pigeons")),
    _no("chunked then deflate", "llhttp transfer-encoding", post(b"World", "Transfer-Encoding: chunked, deflate")),
    _no("chunked then deflate, apart", "llhttp transfer-encoding", post(b"World", CHUNKED, "Transfer-Encoding: deflate")),
    # RFC 9112 6.1: 501 for a coding it does not know. It is there, under the chunks.
    _no("deflate then chunked", "llhttp transfer-encoding", post(_CHUNKS, "Transfer-Encoding: deflate, chunked")),
    _no("deflate then chunked, apart", "llhttp transfer-encoding", post(_CHUNKS, "Transfer-Encoding: deflate", CHUNKED)),
    _no("chunkedchunked", "llhttp transfer-encoding", post(_CHUNKS, "Transfer-Encoding: chunkedchunked")),
    _no("chunked twice", "RFC 9112 6.1", post(_CHUNKS, CHUNKED, CHUNKED)),
    _no("chunked twice in a list", "RFC 9112 6.1", post(_CHUNKS, "transfer-encoding: chunked, chunked")),
    _no("chunked and an empty line of it", "smuggling", post(_CHUNKS, CHUNKED, "transfer-encoding:")),
    _no("identity and chunked", "smuggling", post(_CHUNKS, "transfer-encoding: identity", CHUNKED)),
    _no("chunked and identity", "smuggling", post(_CHUNKS, CHUNKED, "transfer-encoding: identity")),
    *(
        _no(f"coding {bad!r}", "smuggling", post(_CHUNKS, f"Transfer-Encoding:{bad}"))
        for bad in (
            " xchunked", " chunkedx", " x chunked", " chunked, identity", " identity, chunked",
            " identity", " cow", " chunked;q=1", " chunked;", ' "chunked"', " 'chunked'", " chunke",
            " chun\x00ked", " \x0bchunked", "\x0bchunked", " chunked\x0b", "\x0cchunked", " \x00chunked",
            " chunked\x00", " ,chunked", " chunked,", " ,", "", " chunked\r", "\rchunked",
            " chun\rked", " \xa0chunked", " chunked\xa0", " \x85chunked", " chunKed", " gzip, chunked",
        )
        if bad != " chunKed"
    ),
    _no("space before colon of coding", "smuggling", post(_CHUNKS, "Transfer-Encoding : chunked")),
    _no("tab before colon of coding", "smuggling", post(_CHUNKS, "Transfer-Encoding\t: chunked")),
    _no("space before coding", "smuggling", head("POST /x HTTP/1.1", "a: b", " Transfer-Encoding: chunked") + _CHUNKS),
    _no("folded coding", "smuggling", post(_CHUNKS, "Transfer-Encoding:\r\n chunked")),
    _no("fold behind chunked", "llhttp transfer-encoding", post(_CHUNKS, "Transfer-Encoding: chunked\r\n  abc")),
    _no("LF before coding", "llhttp invalid", post(_CHUNKS, "x:x\nTransfer-Encoding: chunked")),
    _no("LF for value before coding", "llhttp invalid", post(_CHUNKS, "x:\nTransfer-Encoding: chunked")),
    _no("CR for value before coding", "llhttp invalid", post(_CHUNKS, "x:\rTransfer-Encoding: chunked")),
    _no("NUL before coding", "smuggling", post(_CHUNKS, "\0Transfer-Encoding: chunked")),
    _no("byte above 127 before coding", "smuggling", post(_CHUNKS, b"\xffTransfer-Encoding: chunked")),
    _no("CRLF without a colon before coding", "smuggling", post(_CHUNKS, "x", CHUNKED)),
    # Without a body that either reading could see, as no length is told.
    _either("misspelt coding", "smuggling", post(b"", "transfer_encoding: chunked"), "400"),
    _either("coding with a dot", "smuggling", post(b"", "transfer.encoding: chunked"), "400"),
    _ok("coding is in another's value", "smuggling", sized("hello", "a: Transfer-Encoding: chunked"), "200 hello"),
    _either("chunked body of GET", "RFC 9110 9.3.1", get("/x", CHUNKED) + chunk(_HIDDEN) + END),
]


def _chunks(name: str, source: str, chunks: bytes, *statuses: int) -> Row:
    return _no(name, source, post(chunks, CHUNKED), *statuses)


_LONG: Final = b"x" * 2**16
_SIZE: Final = b"%x" % _N
_CHUNKINGS: Final = [
    _ok("one chunk", "llhttp transfer-encoding", post(_CHUNKS, CHUNKED), "200 hello"),
    _ok("size in capitals", "llhttp transfer-encoding", post((b"%X\r\n" % _N) + _BODY + b"\r\n" + END, CHUNKED), "200 hello"),
    _ok("chunk per byte", "RFC 9112 7.1", post(b"".join(chunk(_BODY[at : at + 1]) for at in range(_N)) + END, CHUNKED), "200 hello"),
    _ok("zeroes for the end", "llhttp transfer-encoding", chunked("hello", end=b"000\r\n\r\n"), "200 hello"),
    _ok("zeroes before size", "RFC 9112 7.1", post(b"0000" + _CHUNKS, CHUNKED), "200 hello"),
    _either("many zeroes before size", "RFC 9112 7.1", post(b"0" * 300 + _CHUNKS, CHUNKED), "200 hello"),
    _ok("extension", "llhttp transfer-encoding", chunked("hello", extension=b";a"), "200 hello"),
    _ok("extensions", "llhttp transfer-encoding", chunked("hello", extension=b";ilovew3;much=aretheseparametersfor;another=withvalue"), "200 hello"),
    _ok("quoted extension", "llhttp transfer-encoding", chunked("hello", extension=b';a="I \\"love\\"; \\\\b\\\\";c="d";e;f=g'), "200 hello"),
    _ok("extension of the end", "RFC 9112 7.1.1", chunked("hello", end=b"0;a=b\r\n\r\n"), "200 hello"),
    _either("spaces around extension", "RFC 9112 7.1.1", chunked("hello", extension=b" ; a = b"), "200 hello"),
    _either("semicolon only", "llhttp transfer-encoding", chunked("hello", extension=b";"), "200 hello"),
    _either("unbalanced quotes", "llhttp transfer-encoding", chunked("hello", extension=b';a="abc";b="def; ghi'), "200 hello"),
    _chunks("no semicolon before extension", "llhttp transfer-encoding", chunk(_BODY, b" erfrferferf") + END),
    _chunks("LF in extension", "smuggling", chunk(_BODY, b";a\nb") + END),
    _chunks("CR in extension", "smuggling", chunk(_BODY, b";a\rb") + END),
    _chunks("NUL in extension", "RFC 9112 7.1.1", chunk(_BODY, b";a\0b") + END),
    _chunks("LF in quoted extension", "smuggling", chunk(_BODY, b';a="\n"') + END),
    _chunks("CRLF in quoted extension", "smuggling", chunk(_BODY, b';a="\r\n"') + END),
    _chunks("extension of 64 KiB", "RFC 9112 7.1.1", chunk(_BODY, b";" + _LONG) + END),
    _chunks("value of extension of 64 KiB", "RFC 9112 7.1.1", chunk(_BODY, b";a=" + _LONG) + END),
    _either("extensions of 64 KiB in all", "RFC 9112 7.1.1", post(b"".join(chunk(b" ", b";" + b"x" * 1000) for _ in range(66)) + _CHUNKS, CHUNKED), "200 hello"),
    *(
        _chunks(f"size {bad[:20]!r}", "RFC 9112 7.1", bad + b"\r\n" + _BODY + b"\r\n" + END)
        for bad in (
            b"", b"g", b"-5", b"-" + _SIZE, b"+" + _SIZE, b"0x" + _SIZE, _SIZE + b"h", _SIZE + b"_0",
            b" " + _SIZE, b"\t" + _SIZE, _SIZE + b" ", _SIZE + b"\t", _SIZE + b"\x0b", _SIZE + b" 0",
            _SIZE + b",0", _SIZE + b"\0", b"\0" + _SIZE, _SIZE + b"\r", b"\r" + _SIZE, b";a",
            b"\xff", _SIZE + b"\xa0", b"f" * 16, b"f" * 17, b"f" * 5000, b"7fffffffffffffff",
            b"ffffffff", b"8000000000000000",
            b"1" + b"%016x" % _N, b"1" + b"%08x" % _N,
        )
    ),
    _chunks("LF ends size", "RFC 9112 7.1", _SIZE + b"\n" + _BODY + b"\r\n" + END),
    _chunks("CR ends size", "RFC 9112 7.1", _SIZE + b"\r" + _BODY + b"\r\n" + END),
    _chunks("CR CR ends size", "llhttp transfer-encoding", b"5\r\r;ABCD\r\n34\r\nE\r\n0\r\n\r\n" + _HIDDEN),
    _chunks("space and LF in size", "llhttp transfer-encoding", b"3 \n  \r\nfoo\r\n"),
    _chunks("LF ends chunk", "RFC 9112 7.1", _SIZE + b"\r\n" + _BODY + b"\n" + END),
    _chunks("CR ends chunk", "RFC 9112 7.1", _SIZE + b"\r\n" + _BODY + b"\r" + END),
    _chunks("nothing ends chunk", "llhttp transfer-encoding", _SIZE + b"\r\n" + _BODY + END),
    _chunks("chunk is longer than its size", "RFC 9112 7.1", b"4\r\nhello\r\n" + END),
    _chunks("chunk is shorter than its size", "RFC 9112 7.1", b"6\r\nhello\r\n" + END),
    _chunks("LF ends the last chunk", "RFC 9112 7.1", chunk(_BODY) + b"0\n\r\n"),
    _chunks("LF ends the trailers", "RFC 9112 7.1", chunk(_BODY) + b"0\r\n\n"),
    _chunks("LF ends both", "RFC 9112 7.1", chunk(_BODY) + b"0\n\n"),
    _chunks("last chunk missing", "llhttp transfer-encoding", b"3\r\nfoo\r\n\r\n"),
    _chunks("only LF", "llhttp invalid", b"1\nA\n1;abc\nB\n0\n\nBaz: ghi\n\n"),
    _ok("trailers", "llhttp transfer-encoding", chunked("hello", end=b"0\r\nVary: *\r\nContent-Type: text/plain\r\n\r\n"), "200 hello"),
    # RFC 9110 6.5.1: they are not to be taken for headers; whether they are refused is free.
    *(
        _either(f"trailer {bad!r}", "RFC 9110 6.5.1", chunked("hello", end=b"0\r\n" + bad + b"\r\n\r\n"), "200 hello")
        for bad in (
            b"Host: b", b"Connection: close", b"Upgrade: h2c", b"Expect: 100-continue",
            b"X-Request-Id: trailer", b"Authorization: Bearer x", b"Content-Encoding: gzip",
        )
    ),
    *(
        _chunks(f"bad trailer {bad!r}", "RFC 9112 7.1.2", chunk(_BODY) + b"0\r\n" + bad + b"\r\n\r\n")
        for bad in (
            b"Content-Length: 50", b"CONTENT-LENGTH: 0", b"Content-Length: x", b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip", b"a", b"a : b", b": b", b"a: b\nc: d", b"a: b\rc: d", b"a: b\0", b"a: b\r\n c", b" a: b",
        )
    ),
    _chunks("a request for trailers", "smuggling", chunk(_BODY) + b"0\r\n" + _HIDDEN),
    _chunks("trailers of 64 KiB", "RFC 6585 5", chunk(_BODY) + b"0\r\na: " + _LONG + b"\r\n\r\n"),
    _chunks("1000 trailers", "RFC 6585 5", chunk(_BODY) + b"0\r\n" + b"".join(b"h%d: %b\r\n" % (n, b"v" * 60) for n in range(1000)) + b"\r\n"),
]

_CONNECTIONS: Final = [
    _ok("keep-alive", "llhttp connection", get("/x", "Connection: keep-alive") * 2, "404 /x", "404 /x"),
    _ok("keep-alive by default", "llhttp connection", get() + get("/y"), "404 /x", "404 /y"),
    _ok("keep-alive in 1.0", "RFC 9112 9.3", get("/x", "Connection: keep-alive", version="1.0")),
    _ok("keep-alive in 1.0, capitals", "RFC 9112 9.3", get("/x", "Connection: Keep-Alive", version="1.0")),
    _closes("1.0 before 1.1", "llhttp connection", get(version="1.0") + get("/y")),
    _closes("1.0 with length 0", "llhttp connection", head("PUT /x HTTP/1.0", "Content-Length: 0") + get("/y")),
    _closes("close", "llhttp connection", get("/x", "Connection: close")),
    _closes("Close", "RFC 9110 7.6.1", get("/x", "Connection: Close")),
    _closes("close among others", "llhttp connection", get("/x", "Connection: close, token, upgrade, token, keep-alive")),
    _closes("close at the end", "RFC 9110 7.6.1", get("/x", "Connection: keep-alive, close")),
    _closes("close in a second line", "RFC 9110 7.6.1", get("/x", "Connection: keep-alive", "Connection: close")),
    _closes("close with body", "llhttp connection", sized("hello", "Connection: close") + b"\r\n" + get(), "200 hello"),
    _closes("close with chunks", "RFC 9112 9.6", chunked("hello", "Connection: close") + get(), "200 hello"),
    _ok("closed is not close", "RFC 9110 7.6.1", get("/x", "Connection: closed, not-close")),
    _ok("empty line behind a body", "llhttp connection", sized("hello") + b"\r\n" + get(), "200 hello", "404 /x"),
    # It names a header that the next hop must not see; the length is for this one.
    _ok("connection names the length", "smuggling", sized("hello", "Connection: content-length"), "200 hello"),
    _ok("connection names the coding", "smuggling", chunked("hello", "Connection: transfer-encoding"), "200 hello"),
    # RFC 9110 7.8: a server may ignore it.
    _ok("upgrade", "llhttp connection", head("PUT /x HTTP/1.1", "Connection: upgrade", "Upgrade: ws")),
    _ok("upgrade without connection", "RFC 9110 7.8", get("/x", "Upgrade: ws")),
    _ok("connection without upgrade", "RFC 9110 7.8", get("/x", "Connection: upgrade")),
    _ok(
        "upgrade to WebSocket",
        "llhttp connection",
        get(
            "/x",
            "Connection: keep-alive, Upgrade",
            "Upgrade: WebSocket",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ),
    ),
    _ok("upgrade to h2c", "RFC 7540 3.2", get("/x", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")),
    _ok("upgrade with body", "llhttp connection", sized("hello", "Connection: Upgrade", "Upgrade: HTTP/2.0"), "200 hello"),
    _ok("upgrade with chunks", "smuggling", chunked("hello", "Connection: Upgrade", "Upgrade: h2c"), "200 hello"),
    _closes("upgrade and close", "RFC 9110 7.8", get("/x", "Connection: upgrade, close", "Upgrade: h2c")),
]

_EXPECTATIONS: Final = [
    _ok("expect", "RFC 9110 10.1.1", sized("hello", "Expect: 100-continue"), "200 hello"),
    _ok("expect in capitals", "RFC 9110 10.1.1", sized("hello", "Expect: 100-Continue"), "200 hello"),
    _ok("expect with chunks", "RFC 9110 10.1.1", chunked("hello", "Expect: 100-continue"), "200 hello"),
    _ok("expect without body", "RFC 9110 10.1.1", get("/x", "Expect: 100-continue")),
    _closes("expect in 1.0", "RFC 9110 10.1.1", sized("hello", "Expect: 100-continue", version="1.0"), "200 hello"),
    _no("unknown expectation", "RFC 9110 10.1.1", sized("hello", "Expect: 200-ok"), 417),
    _no("two expectations", "RFC 9110 10.1.1", sized("hello", "Expect: 100-continue, pay"), 417),
]

_PIPELINES: Final = [
    _ok(
        "three with bodies",
        "llhttp pipelining",
        sized("a") + sized("bb") + sized("ccc"),
        "200 a",
        "200 bb",
        "200 ccc",
    ),
    _ok(
        "every kind",
        "RFC 9112 9.3.2",
        get("/1") + chunked("b") + head("OPTIONS /3 HTTP/1.1") + sized("d") + get("/v2/health/live"),
        "404 /1",
        "200 b",
        "404 /3",
        "200 d",
        "200",
    ),
    _ok("fifty", "RFC 9112 9.3.2", b"".join(sized(str(n)) for n in range(50)), *(f"200 {n}" for n in range(50))),
    _ok(
        "HEAD first",
        "RFC 9112 9.3.2",
        head("HEAD /x HTTP/1.1") + sized("b"),
        "404",
        "200 b",
        bodiless=(0,),
    ),
    _ok("bad body, then good", "RFC 9112 9.3.2", post(b"hello", "content-length: 5") + sized("b"), "400", "200 b"),
    Row("good, then bad", "RFC 9112 9.3.2", sized("a") + b"GET /x\r\n\r\n", ("200 a",), "refused"),
    Row("good, then no host", "RFC 9112 3.2", get() + b"GET /y HTTP/1.1\r\n\r\n", X, "refused"),
    Row("second has LF", "llhttp lenient-headers", get() + get("/y", "a: \f"), X, "refused"),
    Row("body is longer than told", "smuggling", post(_BODY + b"X", _LENGTH), HELLO, "refused"),
    Row("last chunk twice", "smuggling", chunked("hello") + END, HELLO, "refused"),
]

_CUTS: Final = [
    _cut("part of a method", "llhttp finish", b"GE"),
    _cut("request line", "llhttp finish", b"GET /x HTTP/1.1\r\n"),
    _cut("part of a header", "llhttp finish", b"PUT /x HTTP/1.1\r\nContent-Leng"),
    _cut("headers without the last line", "RFC 9112 8", b"GET /x HTTP/1.1\r\nhost: a\r\n"),
    _cut("headers without the last LF", "RFC 9112 8", b"GET /x HTTP/1.1\r\nhost: a\r\n\r"),
    _cut("head without its body", "llhttp finish", post(b"", "Content-Length: 100")),
    _cut("part of a body", "RFC 9112 8", post(_BODY[:-1], _LENGTH)),
    _cut("head without its chunks", "RFC 9112 8", post(b"", CHUNKED)),
    _cut("part of a size", "RFC 9112 8", post(b"1", CHUNKED)),
    _cut("part of a chunk", "RFC 9112 8", post(chunk(_BODY)[:-3], CHUNKED)),
    _cut("no last chunk", "RFC 9112 8", post(chunk(_BODY), CHUNKED)),
    _cut("no last line", "RFC 9112 8", post(chunk(_BODY) + b"0\r\n", CHUNKED)),
    _cut("part of a trailer", "RFC 9112 8", post(chunk(_BODY) + b"0\r\na: b\r\n", CHUNKED)),
]

# fmt: on

ROWS: Final = [
    *_REQUEST_LINES,
    *_METHODS,
    *_TARGETS,
    *_HOSTS,
    *_HEADERS,
    *_LENGTHS,
    *_CODINGS,
    *_CHUNKINGS,
    *_CONNECTIONS,
    *_EXPECTATIONS,
    *_PIPELINES,
    *_CUTS,
]
