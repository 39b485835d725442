"""Texts of strangers on a terminal: control characters are escaped, and markup and emoji codes are not read."""

import io
import pickle
import sys

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table

from envariant.core.console import SafeConsole, safe_output
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.printable import one_line, printable

HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\rb": r"a\rb",
    "a\0b": r"a\x00b",
    "\x9b31m": r"\x9b31m",
    "\u202eabc\u2066": r"\u202eabc\u2066",
    "a\u2028b": r"a\u2028b",
    "\udcff": r"\udcff",
    "[red]x[/red] :x:": "[red]x[/red] :x:",
    "Ü ✓ 医院 مستشفى": "Ü ✓ 医院 مستشفى",
}
each = pytest.mark.parametrize(("text", "shown"), HOSTILE.items())


@each
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == one_line(text) == shown
    assert printable(shown) == shown
    assert printable(f"a\tb\n{text}") == f"a\tb\n{shown}"
    assert one_line(f"a\n{text}") == f"a\\n{shown}"


def test_overlong_lines_lose_their_middle():
    line = one_line("a" * 10**6 + "; correct it")
    assert len(line) < 5_000
    assert line.endswith("aaa; correct it")


@each
@pytest.mark.parametrize("kind", [EnvariantError, EnvariantWarning])
def test_messages_are_one_printable_line(text, shown, kind):
    error = pickle.loads(pickle.dumps(kind(f"{text}\nof a file")))
    assert str(error) == f"{shown}\\nof a file"


@each
def test_a_console_prints_texts_as_they_are(text, shown, capsys):
    console = SafeConsole(width=200)
    table = Table(text)
    table.add_row(text)
    console.print(text)
    console.print(table, style="red")
    output = capsys.readouterr().out
    assert output.count(shown) == 3
    assert all(character.isprintable() or character == "\n" for character in output)


@each
def test_progress_bars_and_colors_of_a_terminal(text, shown):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        patch.delenv("NO_COLOR", raising=False)
        with safe_output():
            console = SafeConsole(stderr=True, width=200)
            with Progress(TextColumn("{task.description}", markup=False), console=console) as bars:
                bars.add_task(text, total=1)
                console.print(text, style="red")
                sys.stderr.write(text + "\n")
            # A console made while the bars replace the stream.
            SafeConsole(stderr=True, width=200).print("done", style="red")
    output = terminal.getvalue()
    assert shown in output
    assert "\x1b[31mdone\x1b[0m" in output, "the console's own colors stay"
    for own in ("\x1b[31m", "\x1b[0m", "\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r", "\n"):
        output = output.replace(own, "")
    assert output.isprintable()


@each
def test_all_other_output_is_escaped_too(text, shown, capsys):
    with safe_output():
        print(text)
        sys.stderr.writelines([text, "\n"])
        assert sys.stdout.isatty() is False
    captured = capsys.readouterr()
    assert captured.out == f"{shown}\n"
    assert captured.err == f"{shown}\n"


def test_streams_that_are_missing_or_cannot_encode(monkeypatch):
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(sys, "stderr", None)
    with safe_output():
        print("Ü")
        sys.stderr.write("lost")
    ascii_only.flush()
    assert raw.getvalue() == b"\\xdc\n"
    assert sys.stdout is ascii_only
    assert sys.stderr is None
