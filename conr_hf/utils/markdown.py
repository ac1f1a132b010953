"""Text as Markdown that shows it as it is."""

import re


def escape(text: str) -> str:
    """
    Text as Markdown that shows it: on one line, with nothing in it that Markdown, HTML or a table would act on.

    Example:
        >>> print(escape("<b>*age*</b> | [x](http://y)"))
        &lt;b&gt;\\*age\\*&lt;/b&gt; \\| \\[x\\](http\\://y)
    """
    text = _spaced(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~$#@])", r"\\\1", text)
    text = re.sub(r":(?=\S)", r"\\:", re.sub(r"(?i)(www)\.", r"\1\\.", text))  # addresses become links by themselves
    return re.sub(r"^( ?)([-+=]|\d+(?=[.)]))", _escaped_start, text)


def one_line(text: str) -> str:
    """Text without line breaks and without characters that show nothing."""
    return _spaced(text).strip()


def _spaced(text: str) -> str:
    return re.sub(" +", " ", "".join(letter if letter.isprintable() else " " for letter in text))


def _escaped_start(start: re.Match[str]) -> str:
    space, found = start.groups()  # of what would begin a list or underline a heading
    return space + (f"\\{found}" if found in "-+=" else f"{found}\\")
