"""The picture of the README: a command in a terminal of 80 columns, drawn by Rich for light and for
dark pages.
"""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DOCS = Path(__file__).parents[1] / "docs"
FILES = (DOCS / "session-light.svg", DOCS / "session-dark.svg")
SHADOW = Path(sys.executable).parent / "shadow"
COMMAND = "shadow show reports"
WIDTH = 80
MOST_LINES = 50  # more would not fit a screen: the picture says how many are left out


def contrast(*colours: str) -> float:
    """The ratio of relative luminances by WCAG 2, from 1 to 21."""
    levels = [[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours]
    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in level]
        for level in levels
    ]
    dark, light = sorted(
        0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear
    )
    return (light + 0.05) / (dark + 0.05)


def theme(ground: str, text: str, plain: str, bright: str) -> TerminalTheme:
    """A theme of Rich from hexadecimal colours: ground, text, and eight plain and bright ones."""

    def numbers(colours: str) -> list[tuple[int, int, int]]:
        return [(red, green, blue) for red, green, blue in map(bytes.fromhex, colours.split())]

    return TerminalTheme(*numbers(f"{ground} {text}"), numbers(plain), numbers(bright))


# Legible in all colours (tests/test_docs.py), also dimmed: Rich mixes text and background.
LIGHT = theme(
    "ffffff",
    "090c10",
    "24292f cf222e 116329 7d4e00 0969da 8250df 1b7c83 57606a",
    "57606a a40e26 1a7f25 633c01 2168c6 793ecf 1b7c83 24292f",
)
DARK = theme(
    "0d1117",
    "e6edf3",
    "8b949e ff7b72 3fb950 d29922 58a6ff bc8cff 39c5cf b1bac4",
    "8b949e ffa198 56d364 e3b341 79c0ff d2a8ff 56d4dd ffffff",
)

# As Rich's own, without a font from another host and without the frame of a window.
FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" \
role="img" aria-label="@LABEL@">
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
<rect fill="@BACKGROUND@" stroke="@EDGE@" x="1" y="1" width="@WIDTH@" height="@HEIGHT@" rx="8" />
<g transform="translate({terminal_x}, 10)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
CHROME = 30  # height of the window's title in Rich's format, which is left out


def session() -> list[str]:
    """The lines that the command prints in a terminal, with the codes of their colours."""
    with tempfile.TemporaryDirectory() as folder:
        audit = [SHADOW, "audit", "demo", "-o", "reports"]
        subprocess.run(audit, cwd=folder, capture_output=True, check=True)
        leader, follower = pty.openpty()
        variables = {
            "PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLORTERM": "truecolor",
            "COLUMNS": str(WIDTH), "LINES": "200",
        }  # fmt: skip
        if "PYTHONPATH" in os.environ:
            variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
        words = [SHADOW, *COMMAND.split()[1:]]
        with subprocess.Popen(
            words, cwd=folder, stdout=follower, stderr=follower, env=variables
        ) as child:
            os.close(follower)
            printed = b""
            with contextlib.suppress(OSError):  # so ends a terminal on Linux
                while part := os.read(leader, 65536):
                    printed += part
        os.close(leader)
        if child.returncode:
            raise SystemExit(printed.decode())
        text = printed.decode().replace("\r\n", "\n").replace(folder, "")
    text = re.sub(r"/\S*/(registry/demo/\w+)", r".../\1", text)
    text = re.sub(r", [\d.]+ s\b", ", 0.3 s", text)  # how long the audit took
    return text.rstrip("\n").split("\n")


def drawn(lines: list[str], colours: TerminalTheme) -> str:
    """An SVG of the command and its output."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text.assemble(("$ ", "dim"), (COMMAND, "bold")))
    for line in lines[:MOST_LINES]:
        console.print(Text.from_ansi(line), no_wrap=True, crop=True)
    if len(lines) > MOST_LINES:
        console.print(Text(f"... and {len(lines) - MOST_LINES} more lines", style="dim"))
    svg = console.export_svg(title="", theme=colours, code_format=FORMAT, unique_id="session")
    width, height = (
        float(number) for number in re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups()
    )
    height -= CHROME
    svg = re.sub(r'viewBox="[^"]*"', f'viewBox="0 0 {width:g} {height:g}"', svg, count=1)
    given = {
        "LABEL": f"What {COMMAND} prints",
        "BACKGROUND": colours.background_color.hex,
        "EDGE": "#8b949e",
        "WIDTH": f"{width - 2:g}",
        "HEIGHT": f"{height - 2:g}",
    }
    for name, value in given.items():
        svg = svg.replace(f"@{name}@", value)
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


def pictures() -> dict[Path, str]:
    """Both pictures by the file that holds them."""
    lines = session()
    return {file: drawn(lines, colours) for file, colours in zip(FILES, (LIGHT, DARK), strict=True)}
