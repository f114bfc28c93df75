"""Where the parts of a schema.pbtxt stand: text_format tells the line of a part only where it can't parse it."""

from __future__ import annotations

import re

# A comment, a text, a bracket, or what stands between them; each line's end counts.
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>\[\]:,;\n]|[^\s#"'{}<>\[\]:,;]+""")


def read_feature_lines(text: bytes) -> list[dict[str, int]]:
    """For each feature of a schema, in order, the line (from 1) that it starts at, "", and those of its parts by name.

    The text must be one that text_format has parsed.
    """
    features: list[dict[str, int]] = []
    line, depth, name = 1, 0, ""
    for match in _TOKEN.finditer(text.decode()):
        token = match[0]
        if token == "\n":
            line += 1
        elif token in "{<":
            if depth == 0 and name == "feature":
                features.append({"": line})
            depth += 1
        elif token in "}>":
            depth -= 1
        elif token[0] not in "#\"'[]:,;":
            if depth == 0:
                name = token
            elif depth == 1 and name == "feature":
                features[-1].setdefault(token, line)
    return features
