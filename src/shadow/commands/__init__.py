"""The commands of the command line: parse, call one function, show, choose the exit code.

Nothing heavy is imported before a command needs it: `shadow --help` must answer at once.
"""
