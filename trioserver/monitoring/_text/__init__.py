"""What runs, as plain text: for logs, terminals and the messages of tests.

Pure functions of the data. It stands above the programs, which show themselves with it.
"""
