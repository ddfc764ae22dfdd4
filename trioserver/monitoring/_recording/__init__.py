"""What has happened in a Trio program, as events: recorded, replayed, and shown as a page.

Replaying the events rebuilds the tree of tasks of any instant. It must know no server but by what
observers are told, and nothing of the inside of Trio but by `_tree`.
"""
