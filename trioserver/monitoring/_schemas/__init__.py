"""The schemas of what is seen, read from the files in `schemas` beside.

It must know nothing of servers and tasks: whether the schemas are true is for the tests to say.
"""
