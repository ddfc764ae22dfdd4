"""What everybody may know: addresses, settings, events, errors, and who is told.

Values and pure functions; `resolve` alone waits, and `signals` are the whole process's.
It imports no other room.
"""
