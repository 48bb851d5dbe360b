"""Processes in which what strangers made is read and run: models, files, and templates of chats.

Context: a graph, a pickled estimator's rebuilt objects, a compressed page and a template are programs, or as good as.
Decision: each gets a process of its own that is handed its content through a pipe, with little memory, time and few
files, no environment and no way to other programs; a module that is to run there has a class `Served`, and imports
what it needs and nothing else. Consequence: a hang or a bomb is an error here, which names who was to blame.
"""
