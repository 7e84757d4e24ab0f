"""Straight-line scripts for heavy work, each run as a process of its own.

They import nothing of this package, so that the interpreter that runs them may be another one, with the packages of
the extra `unprompt[trl]`; nothing in this package imports them.
"""
