"""A screen in a terminal that shows what a monitor sees: of another process, or of this one.

What is heard (`feed`, `state`), what is looked at (`view`), what that looks like (`screen`) and the
terminal itself (`terminal`, `keys`) know nothing of each other; `app` is where they meet. It must
not know how a monitor gets what it tells, and needs nothing but the standard library and Trio.
"""
