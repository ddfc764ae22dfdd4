"""Where handlers run instead of in a task: in threads, in processes, in foreign servers.

Each mode is a mix-in or a server over the rooms above. They must not know programs,
signals of theirs, or each other, but that processes and adopted servers use threads.
"""
