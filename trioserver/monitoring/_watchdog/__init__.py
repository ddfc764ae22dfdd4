"""The watchdog: a thread that notices when Trio's loop does not turn, and says what holds it.

It must know no server, and change nothing of the program that it looks at; what it reads of another
thread's frames it takes as it comes.
"""
