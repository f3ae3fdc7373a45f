"""Two hundred texts that a model, a person or a file may hold and that no page, table or line may fall for.

Every text keeps a letter when it is stripped of white space, so that a page shows it where it would show a harmless
one; what it adds to a page's structure is then the difference to the page of the harmless text.
"""

from __future__ import annotations

HARMLESS = "harmless"
MEGABYTE = 1_000_000

SURROGATES = [
    "a\ud800b",
    "a\udc00b",
    "a\udfffb",
    "\ud83d",
    "\ude00",
    "a\ud83d\ude00b",
    "a\ude00\ud83db",
    "a\ud83d\ud83d\ude00b",
    "a\ud83d\ude00\ude00b",
    "\udcff\udcfe name of a file",
    "\ud800<b>\udc00",
]

# Every control of C0 but tab and line feed, DEL, and those of C1 that terminals act on.
CONTROLS = [f"a{chr(code)}b" for code in (*range(9), *range(11, 32), 0x7F, 0x84, 0x85, 0x90, 0x9B, 0x9D)]

ANSI = [
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H gone",
    "\x1b]0;a title\x07",
    "\x1b]8;;http://example.invalid\x1b\\a link\x1b]8;;\x1b\\",
    "\x1b[1A\x1b[2K over the line above",
    "\x1bP$q\x1b\\ a device's string",
    "\x9b31mred in one byte",
    "\x1b[?25l no cursor",
    "a\x08\x08\x08b",
    "\x00\x00\x00nothing\x00",
]

MARKUP = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<IMG SRC=javascript:alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg/onload=alert(1)//",
    "<iframe src=http://example.invalid></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<object data=x>",
    "<embed src=x>",
    "<link rel=stylesheet href=http://example.invalid/x.css>",
    "<style>body{display:none}</style>",
    "<base href=http://example.invalid/>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid'>",
    "<form action=http://example.invalid><input name=key></form>",
    "<a href='javascript:alert(1)'>click</a>",
    "<details open ontoggle=alert(1)>",
    "<body onload=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<math><mtext></math><script>alert(1)</script>",
    "<template><script>alert(1)</script></template>",
    "<textarea><script>alert(1)</script></textarea>",
    "</textarea></select></table></main></body></html> the end",
    "</p></div></article></section>",
    "</svg></td></tr></table>",
    "<b><i><u>never closed",
    "<h1>a heading</h1><h2 id=win-rates>another</h2>",
    "<table><tr><td>a cell</table>",
    "<!-- a comment that never ends",
    "--> <!-- <script>alert(1)</script> -->",
    "<!DOCTYPE html><html>",
    "<![CDATA[ <b> ]]>",
    "]]><script>alert(1)</script>",
    "<?php echo 1 ?>",
    "<?xml version='1.0'?>",
    "<x:script xmlns:x='http://www.w3.org/1999/xhtml'>alert(1)</x:script>",
    "< script >alert(1)</ script >",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "<scr\ud800ipt>alert(1)</scr\ud800ipt>",
    "<<<<a>>>>",
    "<a",
    "</",
    "a < b > c & d",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)",
    "&#x3c;img src=x&#x3e; &amp;amp; &nosuch; &",
]

ATTRIBUTES = [
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    '" autofocus onfocus=alert(1) x="',
    '" style="position:fixed;inset:0" x="',
    '" id="win-rates" class="alarm" x="',
    "` onmouseover=`alert(1)",
    'a"b\'c`d"e',
    'javascript:alert("1")',
    "a /> <b x=",
]

TEMPLATES = [
    "{{ 7 * 7 }}",
    "{{ config }}{{ self.__init__.__globals__ }}",
    "{% for x in y %}never ended",
    "{% include 'style.css' %}",
    "{%- endmacro %}{%- endblock %}",
    "{# a comment that never ends",
    "{% raw %}{{ x }}{% endraw %}",
    "$title $body ${body} $$ $",
    "%s %d %(title)s %%",
    "{0} {title} {0.__class__} {{}}",
    "<%= 7 * 7 %>",
    "#{7 * 7}",
    "{{{ body }}}",
]

BIDIRECTIONAL = [
    "\u202egnirts desrever",
    "a\u202eb\u202cc",
    "\u202doverridden to the right",
    "\u202aembedded",
    "\u202bembedded to the left",
    "\u2066isolated, never ended",
    "\u2067isolated to the left",
    "\u2068isolated by its first letter",
    "an end of nothing\u202c\u202c\u2069\u2069",
    "\u202e" * 200 + "deep",
    "\u2067\u202eboth\u2066 > \u202c",
    "\u05e9\u05dc\u05d5\u05dd 12 (34) - 56",
    "\u0645\u0631\u062d\u0628\u0627 <b> 7 %",
    "\u200fa mark\u200e and another\u061c",
]

INVISIBLE = [
    "\ufeffa mark of byte order",
    "a\ufeff\ufeffb",
    "pay\u200bpal",
    "a\u200c\u200d\u2060b",
    "<\u200bscript>alert(1)</\u200bscript>",
    "a\u00adb\u00adc",
    "\U000e0001\U000e0069\U000e006e a tag",
    "a\ufffe\uffff\U0001fffeb",
    "\u2800\u3164blank letters",
    "a\u0000\u200b\u0000b",
]

COMBINING = [
    "a" + "\u0301" * 1000,
    "".join(letter + "\u0335\u0353\u0311\u0489" * 25 for letter in "zalgo"),
    "\u0301\u0301 without a letter before",
    "e\u20dd\u20e3 in frames \ufdfd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 300 + "family",
]

LINES = [
    "one\r\ntwo\r\nthree",
    "one\rtwo",
    "one\n\n\n\ntwo",
    "one\u2028two",
    "one\u2029two",
    "one\x0btwo\x0cthree\x85four",
    "one\ttwo\t\tthree",
    "a" + "\n" * 1000 + "b",
]

LONG = [
    "x" * MEGABYTE,
    "a word " * (MEGABYTE // 7),
    "<b>" * (MEGABYTE // 3),
    "a" + "\u202e" * MEGABYTE,
    '"\ud800' * (MEGABYTE // 2),
    "a" + "\n" * MEGABYTE + "b",
]

MARKDOWN = [
    "# a heading",
    "a title #",
    "- an item",
    "+ an item",
    "1. an item",
    "> a quotation",
    "---",
    "=== a",
    "***",
    "```\na fence",
    "~~~ a fence",
    "~~struck~~",
    "**bold** *slanted* __bold__ _slanted_",
    "![a picture](http://example.invalid/x.png)",
    "[a link](javascript:alert(1))",
    "[a definition]: http://example.invalid",
    "[^1] and [x][y]",
    "a | b | c",
    "a \\| b \\\\| c \\",
    "`code` and ``more`` and ` alone",
    "<div>a block",
    "    an indented block",
    "two spaces  \nand a backslash\\\n",
    "$x$ and $$\\frac{1}{2}$$",
]

TABLES = [
    '=HYPERLINK("http://example.invalid","click")',
    "@SUM(A1:A9)",
    'a,"b",c\r\nd,e,f',
]

HOSTILE = [
    *SURROGATES,
    *CONTROLS,
    *ANSI,
    *MARKUP,
    *ATTRIBUTES,
    *TEMPLATES,
    *BIDIRECTIONAL,
    *INVISIBLE,
    *COMBINING,
    *LINES,
    *LONG,
    *MARKDOWN,
    *TABLES,
]


def named(text: str) -> str:
    """Return a short name of a text for a test's id."""
    return f"{HOSTILE.index(text)}-{text[:20]!a}"
