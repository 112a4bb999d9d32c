# SPDX-License-Identifier: Apache-2.0
# pty_talk.py - a person at a terminal: runs a program in one and talks to it.
#
#   python pty_talk.py SECONDS SCRIPT PROGRAM WORD...
#
# The script has a step per line: `expect TEXT` waits until that was shown since the last
# step, `send TEXT` types (\r is Enter, \t Tab, \x03 Ctrl-C), `size ROWS COLUMNS`. At the
# end it waits for the program. Prints all that was shown; exits with the program's code,
# or 99 where something expected did not come.
import ast
import os
import pty
import select
import struct
import sys
import termios
import fcntl
import time


class Terminal:
    def __init__(self, seconds, words):
        self.deadline = time.monotonic() + seconds
        self.all, self.since = b"", b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(words[0], words)
        self.resize(24, 80)

    def resize(self, rows, columns):
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, size)

    def read(self):
        """More of what is shown; False at its end."""
        left = self.deadline - time.monotonic()
        if left <= 0 or not select.select([self.fd], [], [], left)[0]:
            raise TimeoutError
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.all += data
        self.since += data
        return bool(data)

    def expect(self, text):
        while text not in self.since:
            if not self.read():
                raise EOFError
        self.since = self.since.split(text, 1)[1]

    def send(self, data):
        os.write(self.fd, data)

    def finish(self):
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def unescape(text):
    return ast.literal_eval('"' + text.replace('"', '\\"') + '"').encode()


def main():
    terminal = Terminal(float(sys.argv[1]), sys.argv[3:])
    code = 99
    try:
        with open(sys.argv[2]) as script:
            for line in script.read().splitlines():
                word, _, rest = line.partition(" ")
                if word == "size":
                    terminal.resize(*map(int, rest.split()))
                else:
                    getattr(terminal, word)(unescape(rest))
        code = terminal.finish()
    except (TimeoutError, EOFError) as problem:
        print(f"pty_talk: {type(problem).__name__} at: {line}", file=sys.stderr)
        os.kill(terminal.pid, 9)
    sys.stdout.write(terminal.all.decode(errors="replace"))
    sys.exit(code)


main()
