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
    text = re.sub(r"^( ?)([-+=])", r"\1\\\2", text)  # what would begin a list or underline a heading
    return re.sub(r"^( ?\d+)(?=[.)])", r"\1\\", text)


def one_line(text: str) -> str:
    """Text without line breaks and without characters that show nothing."""
    return _spaced(text).strip()


def _spaced(text: str) -> str:
    return re.sub(" +", " ", "".join(letter if letter.isprintable() else " " for letter in text))
