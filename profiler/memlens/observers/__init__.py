"""Observers: each finds one kind of meaning, and notes it as tags and marks.

They need no help from the script. Each has `install(undo)`, which hooks into torch and pushes the
way back onto the session's one undo list.
"""
