"""What every command line has, those of the tools included: ranges in the types, mistakes in one
line.  Nothing slow is imported.

    Parser          argparse without guessing, with its mistakes as UserError
    whole, number   numbers with ranges, finite always
    text            a name or path
    run_tool        runs main(); a mistake, or a file that cannot be written, becomes one line
    Steady          a stream whose writing never fails
"""

import argparse
import difflib
import errno
import math
import os
import re
import sys

from envs import HIDDEN, UserError


class Help(argparse.HelpFormatter):
    """Help with true defaults."""

    def _get_help_string(self, action):
        parts = [action.help or ""]
        hidden = (None, False, argparse.SUPPRESS)  # compared by identity: a default of 0 is shown
        shown = not any(action.default is value for value in hidden)
        if shown and "default:" not in parts[0]:
            parts.append("(default: %(default)s)")
        return " ".join(filter(None, parts))


class Parser(argparse.ArgumentParser):
    """argparse without guessing (abbreviated options) and with mistakes in one line."""

    def __init__(self, *positional, formatter_class=Help, **named):
        how = {"allow_abbrev": False, "formatter_class": formatter_class}
        super().__init__(*positional, **how, **named)

    def error(self, message):
        message = re.sub("^argument ", "", message)
        if unknown := re.match("unrecognized arguments: (.*)", message):
            names = [word for word in unknown[1].split() if word.startswith("-")]
            first = (names or unknown[1].split())[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(first, known, 1)
            fix = f"did you mean {close[0]}?" if close else "--help lists them all"
            message = f"no argument {first} here: {fix}"
        raise UserError(message)


def whole(least=0, most=10**9):
    """A whole number within least..most."""

    def read(typed):
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", typed) or not least <= int(typed) <= most:
            limit = f"of at least {least}" if most >= 10**9 else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"expected a whole number {limit}, found {typed!r}")
        return int(typed)

    return read


def number(above=None, least=None, below=None, most=None):
    """A finite number within these limits."""
    limits = {"above": above, "at least": least, "below": below, "at most": most}
    found = [f"{word} {value}" for word, value in limits.items() if value is not None]
    limit = " and ".join(found) or "that is finite"

    def read(typed):
        try:
            value = float(typed)
        except ValueError:
            value = math.nan
        fits = math.isfinite(value)
        fits &= (above is None or value > above) and (least is None or value >= least)
        fits &= (below is None or value < below) and (most is None or value <= most)
        if not fits:
            raise argparse.ArgumentTypeError(f"expected a number {limit}, found {typed!r}")
        return value

    return read


def text(typed):
    """A name or path: not empty, no character that no path may have, nothing longer than a file
    system takes.  ~/ is the home folder, after --option=, too, where no shell says so."""
    bad = not typed.strip() or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in typed)
    if bad or len(typed) > 1000 or any(len(os.fsencode(part)) > 255 for part in typed.split("/")):
        found = repr(typed) if len(typed) < 300 else f"one of {len(typed)} characters"
        raise argparse.ArgumentTypeError(f"expected a name or path, found {found}")
    return os.path.expanduser(typed) if typed.startswith("~/") else typed


# ---- running -------------------------------------------------------------------------------------


class Steady:
    """A text stream whose writing never fails: a closed pipe, a full disk or no stream at all must
    not end a run of days."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")
        if hasattr(stream, "reconfigure") and not stream.closed:
            stream.reconfigure(errors="replace")  # a terminal without arrows (cp1252) shows "?"

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except (OSError, ValueError):
            pass


# what a machine may say when a file is written or read, in the middle of a run, too
FILES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES}
FILES |= {errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG}
FILES |= {errno.EMFILE}


def failed_file(error):
    """What to do where a file cannot be written or read any more, in one line."""
    reason = getattr(error, "strerror", None) or error
    place = getattr(error, "filename", None) or "a file"
    found = one_line(f"{place} cannot be written or read ({reason})")
    return f"{found}: mend that, and the same command goes on from what is there"


def end_by_file(error):
    """Ends the process in one line where an OSError is that of a file; raises all others again."""
    if error.errno not in FILES:
        raise error
    print(f"error: {failed_file(error)}", file=sys.stderr)
    sys.exit(2)


def run_tool(main):
    """Runs main(); a user's mistake becomes one line and exit code 2.  For tools that need no torch
    (support.cli.run_script does more)."""
    sys.stdout, sys.stderr = Steady(sys.stdout), Steady(sys.stderr)
    try:
        main()
    except UserError as mistake:
        print(f"error: {one_line(mistake)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        end_by_file(error)
    except KeyboardInterrupt:
        sys.exit("\nstopped")


def one_line(mistake):
    """A mistake as a terminal may show it: one line, without control characters of what was
    found."""
    return HIDDEN.sub("", " ".join(str(mistake).split()))
